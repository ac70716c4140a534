"""Whether a video that was written is whole: some writers say nothing of a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import cv2

from tagclip.utils.opencv import opencv_name

__all__ = ["check_video"]

# Of a box of MP4: 32 bits of size and four letters, maybe 64 bits of size.
_BOX, _LARGE_BOX = 8, 16


def check_video(path: Path, frames: int, size: tuple[int, int]) -> None:
    """Read a video back.

    Args:
        path: an .avi, .mp4 or other file that cv2 decodes.
        frames: how many were written.
        size: width and height.

    Raises:
        OSError: (ENOSPC) the file ends before its container does, or holds fewer frames, or others.
    """
    if not _is_whole(path):
        raise OSError(errno.ENOSPC, f"only {path.stat().st_size} bytes of the video are there")
    capture, count = cv2.VideoCapture(opencv_name(path)), 0
    try:
        found = tuple(
            int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        while capture.grab():
            count += 1
    finally:
        capture.release()
    if (count, found) != (frames, size):
        raise OSError(
            errno.ENOSPC,
            f"found {count} frames of {found[0]} x {found[1]} pixels when it was read again, "
            f"expected {frames} of {size[0]} x {size[1]}",
        )


def _is_whole(path: Path) -> bool:
    """Whether the parts of an .avi or .mp4, whose sizes stand before them, fill the file."""
    next_part = {".avi": _chunk_size, ".mp4": _box_size}.get(path.suffix.lower())
    if next_part is None:
        return True
    place, end = 0, os.path.getsize(path)
    with path.open("rb") as file:
        while place < end:
            file.seek(place)
            size = next_part(file.read(_LARGE_BOX))
            if not size:
                return False
            place += size
    return place == end > 0


def _chunk_size(head: bytes) -> int:
    """Bytes of a RIFF chunk with its head; 0 of something else, or of one that was not finished."""
    size = int.from_bytes(head[4:8], "little")
    return size + 8 if head[:4] == b"RIFF" and size else 0


def _box_size(head: bytes) -> int:
    """Bytes of a box of MP4 with its head; 0 of something else."""
    size = int.from_bytes(head[:4], "big")
    if size == 1:
        size = int.from_bytes(head[8:16], "big")
    return size if size >= _BOX and len(head) >= _BOX else 0
