"""What OpenCV is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

__all__ = ["opencv_name", "quiet_opencv"]


def opencv_name(path: str | os.PathLike[str]) -> bytes:
    """Name of a file for OpenCV: given as text, some names end the process."""
    return os.fsencode(path)


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep what it prints about a bad file off the terminal: an error says it."""
    if os.environ.get("TAGCLIP_DEBUG") == "1":
        yield
        return
    log = cv2.utils.logging
    before = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(before)
