#!/usr/bin/env bash
# Expected: CAP_PROP_FRAME_COUNT is how many frames a video holds, and that divided by CAP_PROP_FPS how
# long it lasts at the rate at which the frames come. Here, of Matroska and WebM files whose frames
# keep to no rate, as recordings of screens, the count is the duration times a nominal rate: several
# times what can be read from the whole file. Of an MP4 with the same times both are right.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment opencv-python-headless==5.0.0.93 numpy==2.4.6 av==16.0.1
"$PYTHON" - <<'PYTHON'
from fractions import Fraction

import av
import cv2
import numpy as np

# Milliseconds: about 15 frames a second, and a screen that stands still for ten seconds.
UNEVEN = np.cumsum(np.random.default_rng(0).integers(30, 110, 40)).tolist()
STILL = [0, 33, 66, 100, 133, 10133, 10166, 10200, 10233]
found = {}
for name, codec in (("a.mkv", "mpeg4"), ("a.webm", "libvpx-vp9"), ("a.mp4", "mpeg4")):
    for what, times in (("uneven", UNEVEN), ("still", STILL)):
        with av.open(name, "w") as container:
            stream = container.add_stream(codec, rate=30)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            for number, time in enumerate(times):
                picture = np.full((64, 96, 3), 20 + 5 * number, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = time, Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        video = cv2.VideoCapture(name)
        rate, count = video.get(cv2.CAP_PROP_FPS), int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        read = 0
        while video.read()[0]:
            read += 1
        print(f"{name}, {what}: {len(times)} frames in {times[-1] - times[0]} ms; "
              f"OpenCV says {rate:.2f} a second and {count}, and reads {read}")
        found[name, what] = len(times), count, read
for (name, what), (wrote, count, read) in found.items():
    assert read == wrote, (name, what)
    if name == "a.mp4":
        assert count == wrote, (name, what)
    else:
        assert count > 2 * wrote, (name, what, count)
PYTHON
