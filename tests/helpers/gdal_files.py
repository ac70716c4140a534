"""What tests/data/files/gdal_*.tif hold; tests/interop/raster/write_files.py writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from helpers.paths import REPOSITORY

__all__ = ["FILES", "REFUSED", "gdal_file", "gdal_ids"]

_TILES = {"tiled": True, "blockxsize": 16, "blockysize": 16}
# Name -> dtype, factor and further arguments of rasterio.open; NBITS, COMPRESS and so on are
# GDAL's creation options. Values are factor * ((x + 3 * y) % count), see `gdal_ids`.
FILES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "nbits1": ("uint8", 1, {"nbits": 1}),
    "nbits2": ("uint8", 1, {"nbits": 2}),
    "nbits3": ("uint8", 1, {"nbits": 3}),
    "nbits4": ("uint8", 1, {"nbits": 4, "compress": "lzw"}),
    "white_is_zero": ("uint8", 1, {"photometric": "miniswhite"}),
    "int8": ("int8", -1, {}),
    "uint32_big_endian": ("uint32", 2**28, {"compress": "deflate", "endianness": "big"}),
    "int64": ("int64", -(2**40), {"compress": "lzw", "predictor": 2}),
    "int64_zstd": ("int64", 1, {"compress": "zstd"}),
    "float32": ("float32", 1, {"compress": "deflate", "predictor": 3}),
    "float64": ("float64", 1, {"compress": "deflate", "predictor": 3, "bigtiff": "yes"}),
    "lerc": ("uint8", 1, {"compress": "lerc"}),
    "overview": ("uint8", 1, _TILES | {"compress": "deflate"}),
    "sparse": ("uint8", 1, _TILES | {"sparse_ok": True}),
}
# Refused as labels, with a command that makes one that is read.
REFUSED = ("nbits3", "int64_zstd", "lerc", "sparse")


def gdal_file(name: str) -> Path:
    """Path of a file."""
    return REPOSITORY / "tests" / "data" / "files" / f"gdal_{name}.tif"


def gdal_ids(name: str) -> np.ndarray:
    """(20, 18) int64: what a file holds."""
    _, factor, options = FILES[name]
    y, x = np.indices((20, 18))
    ids = factor * ((x + 3 * y) % 2 ** min(options.get("nbits", 4), 4))
    if name == "sparse":
        ids[:, 16:] = 0
        ids[16:] = 0
    return ids
