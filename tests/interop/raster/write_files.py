"""Writes tests/data/files/gdal_*.tif, as the README there says."""

from __future__ import annotations

from pathlib import Path

import rasterio
from helpers.gdal_files import FILES, gdal_file, gdal_ids
from rasterio.windows import Window


def write(name: str, path: Path) -> None:
    """Write one of them."""
    dtype, _, options = FILES[name]
    ids = gdal_ids(name)
    shape = {"height": ids.shape[0], "width": ids.shape[1], "count": 1}
    with rasterio.open(path, "w", driver="GTiff", dtype=dtype, **shape, **options) as file:
        if name == "sparse":
            file.write(ids[:16, :16].astype(dtype), 1, window=Window(0, 0, 16, 16))
        else:
            file.write(ids.astype(dtype), 1)
        if name == "overview":
            file.build_overviews([2])


if __name__ == "__main__":
    for name in FILES:
        write(name, gdal_file(name))
