"""Reading of images, without silent conversions."""

from __future__ import annotations

import io
import logging
import os
import stat
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from tagclip.data.jpeg import decode_jpeg
from tagclip.data.tiff_header import SCALE_REMEDY, TiffHeader, has_gaps, read_tiff_header
from tagclip.errors import DatasetError
from tagclip.utils.text import counted, error_text

__all__ = [
    "DARK_REMEDY",
    "IMAGE_SUFFIXES",
    "ImageHeader",
    "UnknownTiffError",
    "announce_other_images",
    "image_pixels",
    "image_size",
    "is_dark",
    "opened",
    "read_header",
    "read_image",
    "stored_size",
]

logger = logging.getLogger(__name__)

# By these, in lower case, files of folders and archives are known to be images.
IMAGE_SUFFIXES = frozenset([
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff",
    ".webp",
])  # fmt: skip
# By these to be images of other kinds: of cameras and telephones, of browsers, of 16 bit and more.
_OTHER_SUFFIXES = frozenset([
    ".apng", ".arw", ".avif", ".cr2", ".cr3", ".dng", ".exr", ".hdr", ".heic", ".heif", ".hif",
    ".j2k", ".jp2", ".jxl", ".nef", ".orf", ".pbm", ".pnm", ".raf", ".rw2", ".svg", ".tga",
])  # fmt: skip
_EXIF_ORIENTATION = 0x0112
# Those that swap height and width.
_TURNED = (5, 6, 7, 8)
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.flip(pixels, -1),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.flip(cv2.transpose(pixels), -1),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
# What Pillow raises on damaged files. The second line: TIFF tags of wrong types or sizes.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_DAMAGE += (TypeError, KeyError, OverflowError, MemoryError)
# Values of 14 bits end here when 16 bits are read as 8.
_DARK = 64
DARK_REMEDY = (
    "if its values have N bits, write copies with all values times 2^(16 - N) (12 bits: 16) and "
    "name their folder"
)
# TIFF tags, and the values of `_EXTRA_SAMPLES` that mean alpha.
_PHOTOMETRIC, _SAMPLES_PER_PIXEL, _PLANAR, _EXTRA_SAMPLES, _BITS = 262, 277, 284, 338, 258
_ALPHA, _RGB, _SEPARATE = (1, 2), 2, 2


def announce_other_images(place: str, names: Iterable[str]) -> None:
    """Warn of the files in a folder that are images to their owner, and are not read.

    Args:
        place: that holds them, for the message.
        names: of files that are left out, with their suffixes.
    """
    suffixes = (os.path.splitext(name)[1].lower() for name in names)
    found = Counter(suffix for suffix in suffixes if suffix in _OTHER_SUFFIXES)
    if found:
        logger.warning(
            "%s: left out %s by their suffixes (%s), expected %s: convert them", place,
            counted(found.total(), "file"), ", ".join(f"{n} {s}" for s, n in sorted(found.items())),
            ", ".join(sorted(IMAGE_SUFFIXES)),
        )  # fmt: skip


class UnknownTiffError(DatasetError):
    """A TIFF of a kind that Pillow does not read, or not rightly.

    Attributes:
        header: what the file says about its pixels.
    """

    header: TiffHeader

    @classmethod
    def of(cls, header: TiffHeader, path: str | Path, what: str) -> UnknownTiffError:
        """The error for an image of that kind."""
        error = cls(
            f"{path}: {what} is a {header}, expected 8-bit colour or 16-bit gray; "
            f"{header.image_remedy}"
        )
        error.header = header
        return error


@contextmanager
def opened(
    source: str | Path | bytes, what: str, max_pixels: int = 0, name: str = ""
) -> Iterator[Image.Image]:
    """Open a file lazily; everything Pillow says about it becomes a DatasetError.

    Args:
        source: a path, or the bytes of a file.
        what: the file is, in messages.
        max_pixels: that INPUT.MAX_PIXELS allows, in messages.
        name: of the file in messages, if it is of no dataset; "": its path.
    """
    is_bytes = isinstance(source, bytes)
    of_dataset = not name
    name = name or _name(source)
    try:
        with warnings.catch_warnings():
            # A size limit of our own follows.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # Opening a named pipe waits for a writer.
            if not is_bytes and not stat.S_ISREG(os.stat(source).st_mode):
                raise OSError
            with Image.open(io.BytesIO(source) if is_bytes else source) as image:
                if image.format == "EPS":
                    # Pillow would have Ghostscript run it.
                    raise OSError("EPS is a program, no pixels; save it as PNG")
                if has_gaps(_tiff_tags(image)) and (header := read_tiff_header(source)):
                    raise UnknownTiffError.of(header, name, what)
                yield image
    except FileNotFoundError as error:
        remedy = "check the dataset folder" if of_dataset else "bring it back, or leave it out"
        raise DatasetError(f"{name}: no such {what}; {remedy}") from error
    except Image.DecompressionBombError as error:
        raise DatasetError(
            f"{name}: {what} is larger than Pillow's limit of {2 * Image.MAX_IMAGE_PIXELS} pixels"
            + (f", INPUT.MAX_PIXELS allows {max_pixels}" if max_pixels else "")
            + "; make it smaller"
        ) from error
    except _DAMAGE as error:
        if isinstance(error, UnidentifiedImageError) and (header := read_tiff_header(source)):
            raise UnknownTiffError.of(header, name, what) from error
        skip = " (of a dataset: DATASETS.ON_BAD_SAMPLE skip)" if of_dataset else ""
        raise DatasetError(
            f"{name}: cannot decode this {what} ({_describe_damage(source, error)}); replace it, "
            f"or leave it out{skip}"
        ) from error


def _name(source: str | Path | bytes) -> str:
    return "image" if isinstance(source, bytes) else str(source)


def _describe_damage(source: str | Path | bytes, error: BaseException) -> str:
    is_bytes = isinstance(source, bytes)
    if not is_bytes and os.path.isdir(source):
        return "it is a folder"
    if not is_bytes and not os.path.isfile(source):
        return "it is no regular file"
    size = len(source) if is_bytes else os.path.getsize(source)
    if size == 0:
        return "it has 0 bytes"
    if isinstance(error, UnidentifiedImageError):
        with io.BytesIO(source) if is_bytes else open(source, "rb") as file:
            start = file.read(512).lstrip().lower()
        if start.startswith((b"<!doctype", b"<html", b"<?xml")):
            return f"{size} bytes of html or xml text"
        return f"{size} bytes of no known image format"
    return error_text(error)


def stored_size(source: str | Path | bytes, max_pixels: int = 0, name: str = "") -> tuple[int, int]:
    """(height, width) of an image as its header says, before any EXIF rotation.

    Args:
        source: a path, or the bytes of a file.
        max_pixels: images with more pixels are refused; 0 sets no limit.
        name: of the image in messages, if it is of no dataset; "": its path.

    Raises:
        DatasetError: the file is missing, no image, or too large.
    """
    with opened(source, "image", max_pixels, name) as image:
        _check_pixels(*image.size, name or _name(source), max_pixels)
        return image.size[::-1]


def image_size(source: str | Path | bytes) -> tuple[int, int]:
    """(height, width) of an image after its EXIF rotation; a JPEG is not decoded for it.

    Args:
        source: a path, or the bytes of a file.

    Raises:
        DatasetError: the file is missing or no image.
    """
    with opened(source, "image") as image:
        width, height = image.size
        is_turned = _exif_orientation(image, _name(source)) in _TURNED
    return (width, height) if is_turned else (height, width)


class ImageHeader(NamedTuple):
    """What a file says about its pixels.

    Attributes:
        mode: Pillow's, such as "RGB".
        orientation: EXIF orientation, 1 if there is none.
        is_16_bit: whether `read_image` makes 8 bits of 16.
        has_alpha: whether there is transparency, which `read_image` drops.
        further_bands: bands of a TIFF behind red, green and blue that are not marked as alpha.
    """

    mode: str
    orientation: int
    is_16_bit: bool
    has_alpha: bool
    further_bands: int


def read_header(path: str | Path) -> ImageHeader:
    """Read the header of an image or label file.

    Raises:
        DatasetError: the file is missing or no image.
    """
    with opened(path, "image") as image:
        # First: Pillow forgets it when it decodes, which it does for the EXIF data of a PNG.
        is_16_bit, bands = _is_16_bit(image), _further_bands(image)
        orientation = _exif_orientation(image, path)
        has_alpha = image.has_transparency_data and not bands
        return ImageHeader(image.mode, orientation, is_16_bit, has_alpha, bands)


def read_image(
    source: str | Path | bytes,
    format: str = "RGB",
    max_pixels: int = 0,
    least: tuple[int, int] | None = None,
    name: str = "",
) -> np.ndarray:
    """Read an image as training, evaluation, predictor, demo, web page and all tools do.

    * The EXIF orientation is applied.
    * Colours are taken as they are stored; alpha is dropped, whatever it says. Gray, palette, CMYK
      and other modes become RGB as Pillow converts them.
    * Of a TIFF with more than three bands the first three are red, green and blue, which is logged
      once where the others are not marked as alpha.
    * 16-bit gray is divided by 257 (65535 becomes 255) and rounded; of 16-bit colour the upper 8
      bits are taken. Both are logged once, and once more if the image becomes almost black, as one
      of 10, 12 or 14 bits does.
    * Of several pages or frames the first is read, which is logged once.

    Args:
        source: path of a file that Pillow can decode, or its bytes.
        format: "RGB" or "BGR".
        max_pixels: images with more pixels are refused before decoding; 0 sets no limit.
        least: (height, width) that are enough, of the upright image: a JPEG is decoded at 1/2, 1/4
            or 1/8 of its size, rounded up, where both sides stay so long. None: whole.
        name: of the image in messages, if it is of no dataset; "": its path.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DatasetError: the file is missing, damaged or too large, or holds other numbers.
    """
    if format not in ("RGB", "BGR"):
        raise ValueError(f"format is {format!r}, expected 'RGB' or 'BGR'")
    with opened(source, "image", max_pixels, name) as image:
        pixels = image_pixels(image, name or _name(source), max_pixels, format, least)
        pages = 1
        # Others may be damaged.
        with suppress(*_DAMAGE):
            pages = page_count(image, source)
        if pages > 1:
            text = f"{name or _name(source)}: the first of {pages} pages or frames is read"
            _first_n()(logging.WARNING, f"{text}; so are others like it", name=__name__)
        return pixels


def page_count(image: Image.Image, source: str | Path | bytes) -> int:
    """Pages or frames of an opened file; previews, smaller copies and masks of a page are none.

    Raises:
        OSError, ValueError, SyntaxError and others of Pillow: a frame is damaged.
    """
    if image.format in ("JPEG", "MPO"):
        return 1
    if image.format == "TIFF":
        # Pillow would set each page up, and raise at kinds that it does not know.
        header = read_tiff_header(source) if getattr(image.tag_v2, "next", 0) else None
        return header.pages if header else 1
    return getattr(image, "n_frames", 1)


def image_pixels(
    image: Image.Image,
    name: str | Path,
    max_pixels: int = 0,
    format: str = "RGB",
    least: tuple[int, int] | None = None,
) -> np.ndarray:
    """(H, W, 3) uint8 of an opened image, as `read_image` says; name is for messages."""
    _check_pixels(*image.size, name, max_pixels)
    is_16_bit, bands = _is_16_bit(image), _further_bands(image)
    if least is not None and isinstance(image, JpegImageFile):
        is_turned = _exif_orientation(image, name) in _TURNED
        _reduce(image, least if is_turned else least[::-1])
    pixels = decode_jpeg(image, format, name)
    if pixels is None:
        # First: reading the EXIF data of a truncated PNG swallows its decoding error.
        image.load()
    orientation = _exif_orientation(image, name)
    if pixels is None:
        pixels = _decoded(image, name, format)
    if orientation in _UPRIGHT:
        pixels = _UPRIGHT[orientation](pixels)
    if bands:
        text = f"{name}: the first 3 of {3 + bands} bands are read as red, green and blue"
        _first_n()(logging.WARNING, f"{text}; so are others like it", name=__name__)
    if is_16_bit:
        is_gray = image.mode.startswith("I")
        how = "gray image, read as 8 bits (divided by 257)"
        text = f"{name}: 16-bit {how if is_gray else 'colour image, read as its upper 8 bits'}"
        _first_n()(logging.WARNING, f"{text}; so are others like it", name=__name__)
    if is_16_bit and is_dark(pixels):
        text = f"{name}: 16-bit image, dark as read: brightest value {pixels.max()} of 255"
        _first_n()(logging.WARNING, f"{text}; {DARK_REMEDY}", name=__name__)
    return pixels


def _check_pixels(width: int, height: int, name: str | Path, max_pixels: int) -> None:
    if not width * height:
        raise DatasetError(f"{name}: image has {width}x{height} pixels, expected one at least")
    if max_pixels and width * height > max_pixels:
        raise DatasetError(
            f"{name}: image has {width}x{height} pixels, INPUT.MAX_PIXELS allows "
            f"{max_pixels}; make the image smaller or raise the key"
        )


def _reduce(image: JpegImageFile, least: tuple[int, int]) -> None:
    """Have a JPEG decoded at the smallest size with (width, height) of `least` or more."""
    width, height = image.size
    for factor in (8, 4, 2):
        fits = -(-width // factor) >= least[0] and -(-height // factor) >= least[1]
        if fits and factor <= min(width, height):
            image.draft(None, (width // factor, height // factor))
            return


def is_dark(pixels: np.ndarray) -> bool:
    """Whether a 16-bit image became so dark in uint8 that its values may have 14 bits or fewer."""
    return pixels.max() <= _DARK


def _is_16_bit(image: Image.Image) -> bool:
    if image.mode.startswith("I"):
        return True
    tags = _tiff_tags(image)
    is_16_bit = max(tags.get(_BITS, (8,))) > 8 or ";16" in str(getattr(image, "tile", [])[:1])
    if is_16_bit and tags.get(_PLANAR) == _SEPARATE and image.info.get("compression") == "raw":
        # Pillow 12.3 takes the bytes of each band for 8-bit values, without an error.
        raise OSError("16-bit colour, uncompressed, band after band; save it pixel after pixel")
    return is_16_bit


def _further_bands(image: Image.Image) -> int:
    tags = _tiff_tags(image)
    if tags.get(_PHOTOMETRIC) != _RGB or set(tags.get(_EXTRA_SAMPLES, ())) & set(_ALPHA):
        return 0
    return tags.get(_SAMPLES_PER_PIXEL, 3) - 3


def _first_n() -> Callable[..., None]:
    """detectron2's `log_first_n`, whose import takes seconds and is needed where it is read."""
    if not logging.getLogger(__name__).isEnabledFor(logging.WARNING):
        return lambda *args, **options: None
    from detectron2.utils.logger import log_first_n

    return log_first_n


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def _exif_orientation(image: Image.Image, path: str | Path) -> int:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        return orientation if isinstance(orientation, int) else 1
    except _DAMAGE:
        _first_n()(
            logging.WARNING,
            f"{path}: damaged EXIF data; this image and others like it are read unrotated",
            name=__name__,
        )
        return 1


def _decoded(image: Image.Image, path: str | Path, format: str) -> np.ndarray:
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise DatasetError(
                f"{path}: image has {values.dtype} values {values.min()}..{values.max()}, expected "
                f"8-bit colour or 16-bit gray; {SCALE_REMEDY}"
            )
        # x / 257 never ends in exactly .5, so that this is the nearest integer.
        image = Image.fromarray(((values.astype(np.int32) + 128) // 257).astype(np.uint8))
    # `convert` copies an image that is RGB already.
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return pixels if format == "RGB" else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
