"""The pixels of a label file as they are stored, whatever library wrote it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from tagclip.data.image_io import UnknownTiffError, opened, page_count
from tagclip.data.tiff_header import RIO, TiffHeader, read_tiff_header
from tagclip.errors import DatasetError
from tagclip.utils.opencv import opencv_name, quiet_opencv

__all__ = ["Raster", "read_raster"]

# Pillow's name of how gray values lie in the file: 1, 2, 4 or 8 bits, maybe inverted.
_GRAY = re.compile(r"(?:(1)|L)(?:;([24])?(I)?R?)?")
_BITS, _SAMPLE_FORMAT, _SIGNED = 258, 339, 2
_PLANAR, _SEPARATE = 284, 2
_AS_INTEGERS = "save the class ids as integers, in a gray PNG or TIFF"


class TransparentLabelError(DatasetError):
    """Gray values or indices of a label file are not opaque."""


class Raster(NamedTuple):
    """Pixels of a file.

    Attributes:
        values: (H, W) uint8, int32 or, where they need it, int64: gray values or palette indices;
            or (H, W, 3 or 4) uint8 or uint16: red, green, blue and maybe alpha, as stored.
        palette: (N, 3) uint8 colours of the indices, None without a palette.
    """

    values: np.ndarray
    palette: np.ndarray | None


def read_raster(path: str | Path) -> Raster:
    """Read the stored pixel values of a label file.

    * Gray values are the numbers in the file: those of 1, 2 and 4 bits are not stretched to 0..255,
      those of a TIFF in which white is 0 not inverted (what tifffile writes for booleans).
    * Floats are read where all of them are whole numbers.
    * A GIF has gray values or colours, no indices, for the libraries that write it renumber those.
    * Alpha beside gray values or indices is dropped where it is full everywhere.
    * A TIFF is turned as its tag says, other files are not (both as Pillow does it).

    Raises:
        DatasetError: the file is missing or damaged, has several pages, values that are no whole
            numbers or beyond int64, or is of a kind that is not read exactly.
    """
    try:
        with opened(path, "label file") as image:
            return _read(image, path)
    except UnknownTiffError as error:
        return Raster(_integers(_read_unknown(path, error.header), path), None)


def _read(image: Image.Image, path: str | Path) -> Raster:
    _check_pages(image, path)
    # First: Pillow forgets it when it decodes.
    tile = image.tile[0] if getattr(image, "tile", None) else ("", None, 0, "")
    layout = tile[3] if isinstance(tile[3], str) else str((tile[3] or ("",))[0])
    is_wide = ";16" in layout or max(_tiff_tag(image, _BITS, (8,))) > 8
    if tile[0].startswith("ppm") or (is_wide and image.mode in ("LA", "RGB", "RGBA")):
        # Pillow stretches values, or takes the upper 8 bits of 16.
        return _read_exactly(image, path)
    if image.mode == "F" or image.mode.startswith("I"):
        return Raster(_integers(_numbers(image, path), path), None)
    if image.format == "BMP" and image.mode == "1":
        _check_bits_of_bmp(path)
    values = np.asarray(image)
    if image.mode in ("1", "L"):
        return Raster(_gray(values.astype(np.uint8, copy=False), image, layout), None)
    if image.mode == "P":
        palette = _palette(image)
        return _colours(values, palette) if image.format == "GIF" else Raster(values, palette)
    if image.mode in ("RGB", "RGBA"):
        return Raster(values, None)
    if image.mode in ("LA", "PA"):
        return Raster(_first_band(values, path), _palette(image) if image.mode == "PA" else None)
    raise DatasetError(
        f"{path}: label has {image.mode} values, expected gray values, a palette, RGB or RGBA; "
        f"{_AS_INTEGERS}"
    )


def _tiff_tag(image: Image.Image, tag: int, default: Any = None) -> Any:
    return image.tag_v2.get(tag, default) if image.format == "TIFF" else default


def _check_pages(image: Image.Image, path: str | Path) -> None:
    _check_page_count(page_count(image, path), path)


def _check_page_count(pages: int, path: str | Path) -> None:
    if pages > 1:
        raise DatasetError(
            f"{path}: label file has {pages} pages or frames, expected one; save the one that "
            "belongs to the image as a file of its own"
        )


def _check_bits_of_bmp(path: str | Path) -> None:
    with open(path, "rb") as file:
        bits = file.read(30)[28]
    if bits != 1:
        # Pillow 12.3 takes its bytes for eight pixels each, without an error.
        raise DatasetError(
            f"{path}: label file is a BMP of {bits} bits with the colours black and white alone, "
            "expected one of 1 bit or 256 colours; save it as PNG"
        )


def _gray(values: np.ndarray, image: Image.Image, layout: str) -> np.ndarray:
    """(H, W) uint8 or int32 as stored, of the uint8 that Pillow makes of it."""
    match = _GRAY.fullmatch(layout)
    bits = int(match[1] or match[2] or 8) if match else 8
    top = 2**bits - 1
    if bits in (2, 4):
        values = values // (255 // top)
    if image.format != "TIFF":
        return values
    if match and match[3]:
        values = top - values
    is_signed = bits == 8 and image.tag_v2.get(_SAMPLE_FORMAT) == (_SIGNED,)
    return values.view(np.int8).astype(np.int32) if is_signed else values


def _numbers(image: Image.Image, path: str | Path) -> np.ndarray:
    """(H, W) of a file with more than 8 bits."""
    if image.format != "TIFF":
        return np.asarray(image)
    # Pillow 12.3 swaps the bytes of compressed big-endian files twice, without an error; OpenCV 5.0
    # stretches 12 bits to 16.
    is_whole = image.tag_v2.get(_BITS) in ((16,), (32,))
    values = _read_by_opencv(path) if is_whole else None
    if values is not None and values.ndim == 2:
        return values
    if image.tag_v2.prefix != b"II" and (header := read_tiff_header(path)):
        raise DatasetError(f"{path}: label file is a big-endian {header}; {header.label_remedy}")
    values = np.asarray(image)
    is_unsigned = values.dtype == np.int32 and image.tag_v2.get(_BITS) == (32,)
    is_unsigned &= image.tag_v2.get(_SAMPLE_FORMAT) != (_SIGNED,)
    return values.view(np.uint32) if is_unsigned else values


def _palette(image: Image.Image) -> np.ndarray:
    # `getpalette` makes a list of numbers, which takes as long as reading a small file.
    palette = image.palette
    return np.frombuffer(palette.tobytes(), np.uint8).reshape(-1, len(palette.mode))[:, :3]


def _colours(indices: np.ndarray, palette: np.ndarray) -> Raster:
    """Gray values, if all colours are gray, or colours."""
    values = np.zeros((256, 3), np.uint8)
    values[: len(palette)] = palette
    is_gray = bool((palette == palette[:, :1]).all())
    return Raster((values[:, 0] if is_gray else values)[indices], None)


def _first_band(values: np.ndarray, path: str | Path) -> np.ndarray:
    """(H, W) of (H, W, C) whose last band is alpha."""
    alpha = values[..., -1]
    if (alpha != np.iinfo(alpha.dtype).max).any():
        raise TransparentLabelError(
            f"{path}: {np.count_nonzero(alpha != np.iinfo(alpha.dtype).max)} pixels of the label "
            "are transparent, expected gray values or indices alone; save it without an alpha "
            "channel, with the ignore value on these pixels"
        )
    return np.ascontiguousarray(values[..., 0])


def _read_exactly(image: Image.Image, path: str | Path) -> Raster:
    """What OpenCV reads as stored and Pillow does not."""
    if _tiff_tag(image, _PLANAR) == _SEPARATE:
        # Neither does.
        raise DatasetError(
            f"{path}: label has 16-bit colours band after band; save them pixel after pixel "
            f"({RIO} convert IN OUT --co interleave=pixel)"
        )
    values = _read_by_opencv(path)
    if values is None:
        raise OSError("its pixels are damaged or of an unknown kind")
    if image.mode == "LA":
        values = _first_band(values, path)
    return Raster(values if values.ndim == 3 else _integers(values, path), None)


def _read_unknown(path: str | Path, header: TiffHeader) -> np.ndarray:
    _check_page_count(header.pages, path)
    values = _read_by_opencv(path) if header.is_plain and not header.has_gaps else None
    if values is None or values.ndim != 2:
        raise DatasetError(f"{path}: label file is a {header}; {header.label_remedy}")
    return values


def _read_by_opencv(path: str | Path) -> np.ndarray | None:
    """(H, W), or RGB or RGBA as (H, W, 3 or 4); None if it cannot."""
    try:
        with quiet_opencv():
            values = cv2.imread(opencv_name(path), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        # Sizes beyond its limits; other damage is a None.
        return None
    if values is None or values.ndim == 2:
        return values
    return np.ascontiguousarray(values[..., [2, 1, 0, 3][: values.shape[2]]])


def _integers(values: np.ndarray, path: str | Path) -> np.ndarray:
    """(H, W) uint8, int32 or int64; floats that are no whole numbers are refused."""
    if values.dtype.itemsize < 4 and values.dtype.kind in "iu":
        return values if values.dtype == np.uint8 else values.astype(np.int32)
    fits = np.abs(values) < 2.0**63 if values.dtype.kind == "f" else values <= np.uint64(2**63 - 1)
    if values.dtype.kind == "f":
        fits &= values == np.trunc(values)
    if not fits.all():
        y, x = np.unravel_index(np.argmin(fits), fits.shape)
        raise DatasetError(
            f"{path}: label has the value {values[y, x]} at ({x},{y}), expected class ids: whole "
            f"numbers up to 2^63 - 1; {_AS_INTEGERS}, with the ignore value where there is no class"
        )
    whole = values.astype(np.int64)
    limits = np.iinfo(np.int32)
    is_narrow = whole.size == 0 or (whole.min() >= limits.min and whole.max() <= limits.max)
    return whole.astype(np.int32) if is_narrow else whole
