"""JPEG files decoded by simplejpeg, in half of Pillow's time, where the pixels are Pillow's."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

try:
    import simplejpeg
except ImportError:
    # Pillow decodes the same pixels.
    simplejpeg = None

__all__ = ["decode_jpeg"]

# Pillow's mode of an image in these colours.
_MODES = {"Gray": "L", "YCbCr": "RGB", "RGB": "RGB"}
# Larger files are left to Pillow, which reads them piece by piece.
_MOST_BYTES = 1 << 28


def decode_jpeg(image: Image.Image, format: str) -> np.ndarray | None:
    """Pixels of an opened file, equal to those of Pillow bit for bit; None: ask Pillow.

    Decoded here are whole, undamaged JPEG files of 8 bits that are gray, YCbCr or RGB. Pillow
    knows more colours, and what is wrong with a file.

    Args:
        image: opened, not decoded; maybe told to decode it at half its size or less (`draft`).
        format: "RGB" or "BGR".

    Returns:
        (H, W, 3) uint8, as stored: not turned as EXIF says.
    """
    # The place of a tile is that of its frame in the file.
    is_first = isinstance(image, JpegImageFile) and [tile[2] for tile in image.tile] == [0]
    if not is_first or not _is_exact():
        return None
    image.fp.seek(0)
    return _decode(image.fp.read(_MOST_BYTES), format, image.mode, image.size)


def _decode(content: bytes, format: str, mode: str, size: tuple[int, int]) -> np.ndarray | None:
    least = {"min_width": size[0], "min_height": size[1]}
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content, **least)
        if (width, height) != size or _MODES.get(colors) != mode:
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
