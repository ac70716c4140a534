#!/usr/bin/env bash
# Expected: a VideoWriter of OpenCV whose file system has no more room raises an error, or says so by
# what write returns or by isOpened. Here, under a limit of the size of a file, every write returns
# True, and what is left behind is a file that ends in the middle.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment opencv-python-headless==5.0.0.93 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import os
import resource
import signal

import cv2
import numpy as np

LIMIT = 20_000  # bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does: the write fails with EFBIG
frames = np.random.default_rng(0).integers(0, 256, (30, 96, 96, 3), np.uint8)
found = {}
for name, code in (("a.avi", "MJPG"), ("a.mp4", "mp4v")):
    for limit in (resource.RLIM_INFINITY, LIMIT):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        writer = cv2.VideoWriter(name, cv2.VideoWriter_fourcc(*code), 25, (96, 96))
        returned = {writer.write(frame) for frame in frames}
        is_open = writer.isOpened()
        writer.release()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        size = os.path.getsize(name)
        print(f"{name}, limit {limit}: write returned {returned}, is open {is_open}, {size} bytes")
        found[name, limit] = returned, is_open, size
for (name, limit), (returned, is_open, size) in found.items():
    assert returned == {True} and is_open, (name, limit)
    assert (size <= LIMIT) == (limit == LIMIT), (name, limit, size)
PYTHON
