"""Pixels for an exported model, as the library reads and resizes them.

`tagclip.data.image_io` and `tagclip.data.inference_input` again, without cv2, torch and detectron2;
tests compare the pixels.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    EXTRASAMPLES,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLESPERPIXEL,
)

__all__ = ["read_image", "resize_image", "resize_plane"]

logger = logging.getLogger(__name__)

# Fixed-point numbers of cv2's weights of 8-bit images.
_ONE = np.float32(2048)


def read_image(path: Path) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB as in training: upright, no alpha, 16-bit gray divided by 257.

    Raises:
        OSError, ValueError: it is damaged, or no image.
    """
    with Image.open(path) as file:
        tags = file.tag_v2 if file.format == "TIFF" else {}
        is_deep = (
            file.mode[0] == "I" or max(tags.get(BITSPERSAMPLE, (8,))) > 8 or ";16" in str(file.tile)
        )
        # RGB without an alpha channel among the extra samples.
        is_rgb = tags.get(PHOTOMETRIC_INTERPRETATION) == 2
        is_opaque = {1, 2}.isdisjoint(tags.get(EXTRASAMPLES, ()))
        bands = tags.get(SAMPLESPERPIXEL, 3) if is_rgb and is_opaque else 3
        file.load()
        image = ImageOps.exif_transpose(file)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{values.dtype} values {values.min()}..{values.max()}")
        image = Image.fromarray(((values.astype(np.int32) + 128) // 257).astype(np.uint8))
    pixels = np.asarray(image.convert("RGB"))
    if is_deep and (most := pixels.max()) <= 64:
        logger.warning("%s: 16-bit image, dark as read: brightest value %d of 255", path, most)
    if bands > 3:
        logger.warning("%s: the first 3 of %d bands are read as red, green, blue", path, bands)
    return pixels


def resize_image(
    image: np.ndarray, size: tuple[int, int], library: str, interpolation: str = "bilinear"
) -> np.ndarray:
    """Resize as the library does.

    Args:
        image: (H, W, 3) uint8.
        size: (height, width) of the result.
        library: "pil", whose filter grows with the reduction, or "cv2", of which this repeats the
            fixed-point arithmetic.
        interpolation: "bilinear"; of "pil" also "bicubic".

    Returns:
        (height, width, 3) uint8.
    """
    if library == "pil":
        mode = Image.Resampling[interpolation.upper()]
        return np.asarray(Image.fromarray(image).resize(size[::-1], mode))
    top, bottom, below = _taps(image.shape[0], size[0], np.float32)
    left, right, beside = _taps(image.shape[1], size[1], np.float32)
    beside[left == right] = 0
    pixels = image.astype(np.int32)
    first, second = _fixed(beside[:, None])
    wide = pixels[:, left] * first + pixels[:, right] * second >> 4
    first, second = _fixed(below[:, None, None])
    upper, lower = wide[top] * first >> 16, wide[bottom] * second >> 16
    return (upper + lower + 2 >> 2).astype(np.uint8)


def resize_plane(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize bilinearly, half-pixel centres, no antialiasing.

    Args:
        plane: (H, W) float32.
        size: (height, width) of the result.

    Returns:
        (height, width) float32.
    """
    if plane.shape == tuple(size):
        return plane
    top, bottom, below = _taps(plane.shape[0], size[0], np.float64)
    left, right, beside = _taps(plane.shape[1], size[1], np.float64)
    wide = plane[:, left] * (1 - beside) + plane[:, right] * beside
    return wide[top] * (1 - below[:, None]) + wide[bottom] * below[:, None]


def _fixed(share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the first and of the second of two pixels, in parts of `_ONE`."""
    return np.rint((1 - share) * _ONE).astype(np.int32), np.rint(share * _ONE).astype(np.int32)


def _taps(old: int, new: int, dtype: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two indices for each new one, and the share of the second."""
    places = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(dtype)
    first = np.floor(places).astype(np.int64)
    share = (places - first).astype(np.float32)
    return first.clip(0, old - 1), (first + 1).clip(0, old - 1), share
