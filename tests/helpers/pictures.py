"""Pictures and videos to predict, whole and broken ones."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def picture(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8, smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height)))


def jpeg() -> bytes:
    """A whole file."""
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG")
    return buffer.getvalue()


def huge_png(side: int) -> bytes:
    """A PNG that announces side x side pixels and holds none of them."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(b""), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


def video(path: Path, broken: int | None = None) -> Path:
    """Six frames; one of them without its JPEG data."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 70))
    for seed in range(6):
        writer.write(picture(70, 96, seed))
    writer.release()
    content = bytearray(path.read_bytes())
    starts = [i for i in range(len(content)) if content[i : i + 3] == b"\xff\xd8\xff"]
    if broken is not None:
        first, end = starts[broken] + 20, starts[broken + 1] - 8
        content[first:end] = bytes(end - first)
        path.write_bytes(content)
    return path
