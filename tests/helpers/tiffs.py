"""TIFF files that no library at hand writes."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np


def tiff(pixels: np.ndarray, extra: Sequence[int] | None = None, separate: bool = False) -> bytes:
    """An uncompressed RGB file of (H, W, C) uint8 or uint16.

    Args:
        pixels: C bands, the first three of them red, green and blue.
        extra: the tag ExtraSamples: 0 nothing special, 1 and 2 alpha, for each further band.
        separate: band after band instead of pixel after pixel.
    """
    height, width, bands = pixels.shape
    planes = np.split(pixels, bands, 2) if separate else [pixels]
    data = [plane.astype(pixels.dtype.newbyteorder("<")).tobytes() for plane in planes]
    offsets = [8 + sum(map(len, data[:index])) for index in range(len(data))]
    tags = {
        256: [width],
        257: [height],
        258: [8 * pixels.dtype.itemsize] * bands,
        259: [1],
        262: [2],
        273: offsets,
        277: [bands],
        278: [height],
        279: [len(part) for part in data],
        284: [1 + separate],
    } | ({} if extra is None else {338: list(extra)})
    start = 8 + sum(map(len, data))
    end, rows, rest = start + 2 + 12 * len(tags) + 4, b"", b""
    for tag, values in tags.items():
        raw = struct.pack(f"<{len(values)}I", *values)
        place = raw if len(raw) == 4 else struct.pack("<I", end + len(rest))
        rest += raw if len(raw) > 4 else b""
        rows += struct.pack("<HHI", tag, 4, len(values)) + place
    head = b"II*\0" + struct.pack("<I", start)
    return head + b"".join(data) + struct.pack("<H", len(tags)) + rows + bytes(4) + rest
