"""The same ids written as label files by other libraries, in every mode that they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import cv2
import numpy as np
import tifffile
from PIL import Image

__all__ = ["WRITERS", "Writer"]


@dataclass(frozen=True)
class Writer:
    """One way to write ids.

    Attributes:
        name: library, format, mode and options.
        suffix: of the file.
        low, high: the range of ids that it can hold.
        write: called with a path and (H, W) int64 ids.
        is_common: whether the file must be read; others may be refused.
        stored: the values in the file, of the ids; (H, W) or (H, W, 3).
    """

    name: str
    suffix: str
    low: int
    high: int
    write: Callable[[str, np.ndarray], None]
    is_common: bool = True
    stored: Callable[[np.ndarray], np.ndarray] = np.asarray


def _limits(dtype: str) -> tuple[int, int]:
    if dtype.startswith("float"):
        digits = np.finfo(dtype).nmant
        return -(2**digits), 2**digits
    limits = np.iinfo(dtype)
    return int(limits.min), min(int(limits.max), 2**63 - 1)


# Mode -> highest id and type of the array behind it.
_PILLOW = {
    "1": (1, np.uint8),
    "L": (255, np.uint8),
    "P": (255, np.uint8),
    "LA": (255, np.uint8),
    "PA": (255, np.uint8),
    "I;16": (65535, np.uint16),
    "I;16B": (65535, np.dtype(">u2")),
    "I": (2**31 - 1, np.int32),
    "F": (2**24, np.float32),
    "RGB": (255, np.uint8),
    "RGBA": (255, np.uint8),
}
_PILLOW_FORMATS = {
    "png": ["1", "L", "P", "LA", "I;16", "RGB", "RGBA"],
    "bmp": ["1", "L", "P", "RGB", "RGBA"],
    "gif": ["1", "L", "P"],
    "tif": list(_PILLOW),
    "pgm": ["1", "L", "I;16", "RGB"],
    "tga": ["1", "L", "P", "LA", "RGB", "RGBA"],
    "pcx": ["1", "L", "P"],
    "sgi": ["L", "RGB", "RGBA"],
    "jp2": ["L", "LA", "I;16", "RGB", "RGBA"],
    "webp": ["RGB", "RGBA"],
    "im": ["1", "L", "P", "LA", "I;16", "I", "F", "RGB", "RGBA"],
}
_PILLOW_TIFF = ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma", "group4"]
_PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
# What a GIF holds: its writers renumber indices, colours stay.
_GIF = {"1": lambda ids: ids * 255, "P": lambda ids: _PALETTE[ids]}


def _pillow(mode: str, options: dict, path: str, ids: np.ndarray) -> None:
    height, width = ids.shape
    if mode == "1":
        Image.fromarray(ids.astype(bool)).save(path, **options)
        return
    data = ids.astype(_PILLOW[mode][1])
    if mode in ("LA", "PA", "RGB", "RGBA"):
        bands = [data] * (3 if mode[0] == "R" else 1)
        data = np.stack(bands + [np.full_like(data, 255)] * (mode[-1] == "A"), 2)
    image = Image.frombytes(mode, (width, height), data.tobytes())
    if mode[0] == "P":
        image.putpalette(_PALETTE.tobytes())
    image.save(path, **options)


def _pillow_writers() -> Iterator[Writer]:
    for suffix, modes in _PILLOW_FORMATS.items():
        options = [{"lossless": True, "exact": True} if suffix == "webp" else {}]
        if suffix == "tif":
            options = [
                {"compression": kind, "big_tiff": big}
                for kind, big in product(_PILLOW_TIFF, (False, True))
            ]
        for mode, option in product(modes, options):
            if option.get("compression") == "group4" and mode != "1":
                continue
            high = _PILLOW[mode][0]
            yield Writer(
                name=f"Pillow {suffix} {mode} {option or ''}".strip(),
                suffix=f".{suffix}",
                low=-high if mode in ("I", "F") and suffix == "tif" else 0,
                high=high,
                write=partial(_pillow, mode, option),
                # Pillow 12.3 writes it with wrong offsets.
                is_common=not (mode == "I;16B" and option["big_tiff"]),
                stored=_GIF.get(mode, np.asarray) if suffix == "gif" else np.asarray,
            )


_OPENCV_FORMATS = {
    "png": ["uint8", "uint16"],
    "bmp": ["uint8"],
    "pgm": ["uint8", "uint16"],
    "pam": ["uint8", "uint16"],
    "ras": ["uint8"],
    "pfm": ["float32"],
    "tif": [f"{kind}{bits}" for bits in (8, 16, 32, 64) for kind in ("int", "uint")]
    + ["float32", "float64"],
}


def _opencv(dtype: str, bands: int, options: list[int], path: str, ids: np.ndarray) -> None:
    values = ids.astype(dtype)
    if bands > 1:
        values = np.stack([values] * 3 + [np.full_like(values, np.iinfo(dtype).max)], 2)
        values = np.ascontiguousarray(values[..., :bands])
    assert cv2.imwrite(path, values, options)


def _opencv_writers() -> Iterator[Writer]:
    kinds = [(suffix, dtype) for suffix, dtypes in _OPENCV_FORMATS.items() for dtype in dtypes]
    for suffix, dtype in kinds:
        options = [[]]
        if suffix == "tif":
            options = [[cv2.IMWRITE_TIFF_COMPRESSION, kind] for kind in (1, 5, 8, 32773)]
        bands = (1, 3, 4) if suffix in ("png", "tif") and dtype in ("uint8", "uint16") else (1,)
        for option, band in product(options, bands):
            yield Writer(
                name=f"OpenCV {suffix} {dtype} {band} {option or ''}".strip(),
                suffix=f".{suffix}",
                # Of 64-bit integers it writes the lower 32.
                low=max(_limits(dtype)[0], -(2**31)),
                high=min(_limits(dtype)[1], 2**31 - 1) if "64" in dtype else _limits(dtype)[1],
                write=partial(_opencv, dtype, band, option),
                is_common=suffix != "pam",
            )
    bilevel = partial(_opencv, "uint8", 1, [cv2.IMWRITE_PNG_BILEVEL, 1])
    yield Writer("OpenCV png bilevel", ".png", 0, 1, bilevel)


_TIFFFILE_TYPES = [f"{kind}{bits}" for bits in (8, 16, 32, 64) for kind in ("int", "uint")]
_TIFFFILE_TYPES += ["float16", "float32", "float64", "bool"]


def _tifffile(dtype: str, bands: int, options: dict, path: str, ids: np.ndarray) -> None:
    values = ids.astype(dtype)
    if bands > 1:
        values = np.stack([values] * 3 + [np.full_like(values, np.iinfo(dtype).max)])[:bands]
        if options.get("planarconfig") != "separate":
            values = values.transpose(1, 2, 0)
        options = options | {"extrasamples": ["unassalpha"] * (bands - 3)}
    tifffile.imwrite(path, values, **options)


def _tifffile_writers() -> Iterator[Writer]:
    layouts = ({}, {"tile": (16, 16)}, {"rowsperstrip": 3})
    photometric = ("minisblack", "miniswhite")
    kinds = (_TIFFFILE_TYPES, "<>", (False, True), photometric, (None, "zlib", "lzma"), layouts)
    for dtype, order, big, white, compression, layout in product(*kinds):
        options = {"byteorder": order, "bigtiff": big, "photometric": white}
        options |= {"compression": compression} | layout
        if dtype == "bool":
            del options["photometric"]
        low, high = (0, 1) if dtype == "bool" else _limits(dtype)
        yield Writer(
            name=f"tifffile {dtype} {options}",
            suffix=".tif",
            low=low,
            high=high,
            write=partial(_tifffile, dtype, 1, options),
            is_common=(order, white) == ("<", "minisblack")
            and compression != "lzma"
            and dtype != "float16",
        )
    kinds = (("uint8", "uint16"), "<>", (3, 4), ("contig", "separate"), (None, "zlib"))
    for dtype, order, bands, planar, compression in product(*kinds):
        options = {"byteorder": order, "photometric": "rgb", "planarconfig": planar}
        options |= {"compression": compression}
        yield Writer(
            name=f"tifffile {dtype} {bands} {options}",
            suffix=".tif",
            low=0,
            high=np.iinfo(dtype).max,
            write=partial(_tifffile, dtype, bands, options),
            is_common=(dtype, planar) != ("uint16", "separate"),
        )


WRITERS = {
    writer.name: writer
    for writers in (_pillow_writers(), _opencv_writers(), _tifffile_writers())
    for writer in writers
}
