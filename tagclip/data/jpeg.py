"""JPEG files decoded by simplejpeg, in half of Pillow's time, where the pixels are Pillow's.

Files with so many scans that they would be decoded for minutes are refused before.
"""

from __future__ import annotations

import io
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from tagclip.errors import DatasetError

try:
    import simplejpeg
except ImportError:
    # Pillow decodes the same pixels.
    simplejpeg = None

__all__ = ["MOST_SCANS", "count_scans", "decode_jpeg"]

MOST_SCANS = 100
"""libtiff's limit of a JPEG within a TIFF. Each scan goes over all pixels; encoders write ten."""

# Pillow's mode of an image in these colours.
_MODES = {"Gray": "L", "YCbCr": "RGB", "RGB": "RGB"}
# Larger files are left to Pillow.
_MOST_BYTES = 1 << 28
# A marker; in compressed data a byte 255 is followed by 0 or by a restart marker.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
_START_OF_SCAN, _END_OF_IMAGE = b"\xda", b"\xd9"


def count_scans(content: bytes) -> int:
    """Count the scans of the first image in a JPEG file.

    Args:
        content: of the file. What else is in it, as thumbnails, colour profiles or a video behind
            the image, has none of this image's scans.
    """
    # Quick: there are not more than pairs of bytes that look like the start of one.
    if (most := content.count(b"\xff" + _START_OF_SCAN)) <= MOST_SCANS:
        return most
    found, place = 0, 2
    while marker := _MARKER.search(content, place):
        place = marker.end()
        if marker[1] == _END_OF_IMAGE:
            break
        found += marker[1] == _START_OF_SCAN
        # The length of the segment, its own two bytes included.
        place += int.from_bytes(content[place : place + 2], "big")
    return found


def decode_jpeg(image: Image.Image, format: str, name: str | Path = "image") -> np.ndarray | None:
    """Pixels of an opened file, equal to those of Pillow bit for bit; None: ask Pillow.

    Decoded here are whole, undamaged JPEG files of 8 bits that are gray, YCbCr or RGB. Pillow
    knows more colours, and what is wrong with a file.

    Args:
        image: opened, not decoded; maybe told to decode it at half its size or less (`draft`).
        format: "RGB" or "BGR".
        name: for messages.

    Returns:
        (H, W, 3) uint8, as stored: not turned as EXIF says.

    Raises:
        DatasetError: a JPEG has more than `MOST_SCANS` scans; whoever decodes it takes minutes.
    """
    if not isinstance(image, JpegImageFile) or image.fp is None:
        return None
    place = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    # Some of Pillow's readers go on from where they are.
    image.fp.seek(place)
    if (found := count_scans(content)) > MOST_SCANS:
        raise DatasetError(
            f"{name}: found {found} scans in this JPEG, expected at most {MOST_SCANS}; save it anew"
        )
    # The place of a tile is that of its frame in the file.
    if len(content) > _MOST_BYTES or [tile[2] for tile in image.tile] != [0] or not _is_exact():
        return None
    return _decode(content, format, image.mode, image.size)


def _decode(content: bytes, format: str, mode: str, size: tuple[int, int]) -> np.ndarray | None:
    least = {"min_width": size[0], "min_height": size[1]}
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content, **least)
        if (width, height) != size or _MODES.get(colors) != mode:
            return None
        # Below 8 pixels 3/8 are as long as 1/2, and simplejpeg takes the smaller one.
        stored = simplejpeg.decode_jpeg_header(content)[1::-1]
        if stored != size and max(stored) < 8:
            return None
        # By default it is strict: what libjpeg only warns of is an error, too.
        return simplejpeg.decode_jpeg(content, format, **least)
    except (ValueError, KeyError):
        # A KeyError: samplings without a name (simplejpeg 1.9).
        return None


@lru_cache(maxsize=1)
def _is_exact() -> bool:
    """Whether simplejpeg decodes as this Pillow: each brings a libjpeg of its own."""
    if simplejpeg is None:
        return False
    noise = np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8)
    for sampling in range(3):
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "JPEG", subsampling=sampling, quality=90)
        found = _decode(file.getvalue(), "RGB", "RGB", noise.shape[1::-1])
        if found is None or not np.array_equal(found, np.asarray(Image.open(file))):
            return False
    return True
