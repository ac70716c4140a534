#!/usr/bin/env bash
# Expected: parts of a GeoTIFF that were never written (offset and length 0, GDAL's SPARSE_OK, for
# label maps that are mostly empty) are read as 0, as GDAL reads them, or the file is refused. Pillow
# gives the first bytes of the file as their pixels, without an error.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment Pillow==12.3.0 numpy==2.4.6 rasterio==1.4.4
"$PYTHON" -W ignore - <<'PYTHON'
import numpy as np
import rasterio
from PIL import Image
from rasterio.windows import Window

options = {"driver": "GTiff", "count": 1, "dtype": "uint8", "width": 32, "height": 32}
tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16, "SPARSE_OK": True}
with rasterio.open("label.tif", "w", **options, **tiles) as file:
    file.write(np.full((16, 16), 5, np.uint8), 1, window=Window(16, 16, 16, 16))
with rasterio.open("label.tif") as file:
    gdal = file.read(1)
pillow = np.asarray(Image.open("label.tif"))
with open("label.tif", "rb") as file:
    start = list(file.read(8))
print("written part  ", "GDAL", np.unique(gdal[16:, 16:]), "Pillow", np.unique(pillow[16:, 16:]))
print("empty part    ", "GDAL", gdal[0, :8].tolist(), "Pillow", pillow[0, :8].tolist())
print("file begins   ", start)
assert not gdal[:16].any() and pillow[0, :8].tolist() == start
PYTHON
