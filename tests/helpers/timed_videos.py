"""Videos whose frames have times of their own, whole and damaged; needs PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest


def timed_video(path: Path, times: Sequence[int], codec: str, **options: str) -> Path:
    """One gray frame, 20 + 5 x number bright, at each time.

    Args:
        path: its suffix is the container; "live" among the options is one of the container.
        times: milliseconds, growing.
        codec: of ffmpeg.
        options: of the codec.
    """
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install '.[video]'")
    live = {"live": options.pop("live")} if "live" in options else {}
    with av.open(str(path), "w", options=live) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.bit_rate = 2_000_000
        even = all(time == 40 * number for number, time in enumerate(times))
        base = Fraction(1, 25) if even else Fraction(1, 1000)
        stream.codec_context.time_base = base
        for number, time in enumerate(times):
            picture = np.full((64, 96, 3), 20 + 5 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number if even else time, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def number_of(frame: np.ndarray) -> int:
    """Which frame of such a video this one shows."""
    return round((float(frame.mean()) - 20) / 5)


def damage(path: Path, number: int) -> Path:
    """Overwrite the beginning of what is stored of one frame."""
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install '.[video]'")
    with av.open(str(path)) as container:
        data = [bytes(packet) for packet in container.demux(video=0) if packet.size][number]
    content = path.read_bytes()
    place = content.index(data)
    path.write_bytes(content[:place] + bytes(len(data)) + content[place + len(data) :])
    return path


def without_times(path: Path) -> Path:
    """A .webm whose header says neither how long it lasts nor how long a frame does."""
    content = path.read_bytes()
    for head, size in ((b"\x44\x89\x88", 11), (b"\x23\xe3\x83\x84", 8)):
        place = content.find(head)
        if place >= 0:
            # An element that readers skip.
            void = b"\xec" + bytes([0x80 + size - 2]) + bytes(size - 2)
            content = content[:place] + void + content[place + size :]
    path.write_bytes(content)
    return path
