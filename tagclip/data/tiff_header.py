"""What a TIFF says about its pixels, also where Pillow does not know the kind."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

__all__ = ["RIO", "SCALE_REMEDY", "TiffHeader", "has_gaps", "read_tiff_header"]

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SUBFILE, _BITS, _COMPRESSION, _OFFSETS, _BANDS, _COUNTS = 254, 258, 259, 273, 277, 279
_ORIENTATION, _PLANAR, _TILE_OFFSETS, _TILE_COUNTS, _FORMAT = 274, 284, 324, 325, 339
# Bits of `_SUBFILE`: a smaller copy of the page before, a mask of it.
_NO_PAGE = 1 | 4
_NUMBERS = {1: "integer", 2: "signed integer", 3: "float"}
# Codes that Pillow has no name for.
_COMPRESSIONS = {34887: "LERC", 34712: "JPEG 2000", 50001: "WebP", 52546: "JPEG XL"}
# The command of rasterio, which writes any kind of TIFF as another one.
RIO = "pip install rasterio; rio"
SCALE_REMEDY = (
    "write copies with values from 0 to 255, value * A + B of the old ones: "
    f"{RIO} convert IN OUT --dtype uint8 --scale-ratio A --scale-offset B "
    "--co compress=deflate"
)
_ANEW = f"write it anew: {RIO} convert IN OUT --co compress=deflate"
_CALC = RIO + ' calc "(asarray {})" IN OUT --not-masked --co compress=deflate'
_READ = ("", "lzw", "deflate", "packbits")


class TiffHeader(NamedTuple):
    """The first page of a file.

    Attributes:
        bits: of a number.
        numbers: "integer", "signed integer", "float" or "other".
        bands: numbers of a pixel.
        compression: its name, "" for none.
        is_planar: whether the bands lie one after the other.
        has_gaps: whether strips or tiles were never written.
        is_turned: whether its Orientation tag swaps height and width.
        pages: of the file, without smaller copies and masks.
    """

    bits: int
    numbers: str
    bands: int
    compression: str
    is_planar: bool
    has_gaps: bool
    is_turned: bool
    pages: int

    def __str__(self) -> str:
        bands = f"{self.bands} band{'s' * (self.bands != 1)}"
        how = f", {self.compression}" if self.compression else ""
        how += ", band after band" if self.is_planar else ""
        how += ", turned by its Orientation tag" if self.is_turned else ""
        how += ", parts of which were never written (sparse)" if self.has_gaps else ""
        return f"TIFF of {bands} of {self.bits}-bit {self.numbers} values{how}"

    @property
    def image_remedy(self) -> str:
        """How to make an image of it that is read."""
        colours = " --co photometric=rgb" * (self.bands > 1)
        if self.bands == 2:
            return f"choose one: {_CALC.format('(read 1 1)')}"
        if self.bands not in (1, 3, 4):
            bands = "(read 1 3) (read 1 2) (read 1 1)"
            return f"choose red, green and blue: {_CALC.format(bands)}{colours}"
        if self.bits > 16 or self.numbers != "integer":
            return SCALE_REMEDY + colours
        return self._same_values + colours

    @property
    def label_remedy(self) -> str:
        """How to make a label of it that is read."""
        if self.bands > 1:
            return f"a label has one band, so choose it: {_CALC.format('(read 1 1)')}"
        if self.is_turned:
            return "save it upright, without that tag"
        if self.is_plain and self.compression in _READ and not self.has_gaps:
            return "its pixels are damaged: replace it, or leave it out"
        return self._same_values

    @property
    def is_plain(self) -> bool:
        """Whether OpenCV reads the values as they are, if it knows the compression."""
        bits = (32, 64) if self.numbers == "float" else (16, 32, 64)
        return self.bands == 1 and self.numbers != "other" and self.bits in bits

    @property
    def _same_values(self) -> str:
        if (self.bits, self.numbers) == (16, "float"):
            return f"{_ANEW} --dtype float32"
        if (self.bits, self.numbers) == (8, "signed integer"):
            return f"{_ANEW} --co photometric=minisblack"
        if self.bits in (1, 2, 4, 8, 16, 32, 64):
            return _ANEW
        return f"{_ANEW} --co nbits=16 --dtype uint16"


def has_gaps(tags: Mapping[int, Any]) -> bool:
    """Whether strips or tiles of a page were never written (GDAL's SPARSE_OK).

    Pillow 12.3 takes the beginning of the file for their pixels, without an error.
    """
    places = [tags.get(tag) for tag in (_OFFSETS, _TILE_OFFSETS, _COUNTS, _TILE_COUNTS)]
    return any(0 in place for place in places if place)


def read_tiff_header(source: str | Path | bytes) -> TiffHeader | None:
    """Read the tags of a TIFF; None for other files, and where they cannot be read.

    Args:
        source: a regular file, or its bytes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _header(list(_pages(source)))
    # What Pillow raises on damaged tags is not listed anywhere.
    except Exception:
        return None


def _header(pages: Sequence[Mapping[int, Any]]) -> TiffHeader | None:
    if not pages:
        return None
    tags = pages[0]
    # Damaged tags may have any type.
    code, bands = int(tags.get(_COMPRESSION, 1)), int(tags.get(_BANDS, 1))
    name = COMPRESSION_INFO.get(code) or _COMPRESSIONS.get(code, f"compression {code}")
    return TiffHeader(
        bits=int(max(tags.get(_BITS, (1,)))),
        numbers=_NUMBERS.get(max(tags.get(_FORMAT, (1,))), "other"),
        bands=bands,
        compression="" if code == 1 else name.removeprefix("tiff_").removeprefix("adobe_"),
        is_planar=tags.get(_PLANAR) == 2 and bands > 1,
        has_gaps=has_gaps(tags),
        is_turned=tags.get(_ORIENTATION, 1) > 4,
        # Without a tag there is none: the file ends before it.
        pages=sum(len(page) > 0 and not page.get(_SUBFILE, 0) & _NO_PAGE for page in pages),
    )


def _pages(source: str | Path | bytes) -> Iterator[ImageFileDirectory_v2]:
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        head = file.read(8)
        if head[:4] not in _MAGIC:
            return
        prefix = head[:2]
        if b"+" in head[2:4]:
            # Pillow 12.3 does not know the big-endian one by itself.
            head = b"II+\0" + head[4:] + file.read(8)
        tags, seen = ImageFileDirectory_v2(head, prefix), set()
        while tags.next and tags.next not in seen:
            seen.add(tags.next)
            file.seek(tags.next)
            tags = ImageFileDirectory_v2(head, prefix)
            tags.load(file)
            yield tags
