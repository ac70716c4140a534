"""Label files and images by rasterio (GDAL) and imageio: read, or refused with a remedy that ends.

Run by tests/interop/run.sh raster.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import rasterio
from helpers.gdal_files import FILES, gdal_file, gdal_ids

from tagclip.data.image_io import read_image
from tagclip.data.raster import read_raster
from tagclip.errors import DatasetError

pytestmark = pytest.mark.filterwarnings("ignore")
INTEGERS = [f"{kind}{bits}" for bits in (8, 16, 32, 64) for kind in ("int", "uint")]


def remedied(path: Path, message: str, scale: tuple[float, float] = (1, 0)) -> Path:
    """The copy that the command of an error makes."""
    found = re.search(r"pip install rasterio; (rio \w+ .*)", message)
    assert found, message
    out = path.with_name(f"{path.stem}_.tif")
    out.unlink(missing_ok=True)
    words = {"IN": str(path), "OUT": str(out), "A": str(scale[0]), "B": str(scale[1])}
    command = [words.get(word, word) for word in shlex.split(found[1])]
    script = "import sys; from rasterio.rio.main import main_group; sys.exit(main_group())"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, *command[1:]], check=True)
    return out


def read_or_remedied(path: Path) -> tuple[np.ndarray, str]:
    try:
        return read_raster(path).values, ""
    except DatasetError as error:
        return read_raster(remedied(path, str(error))).values, str(error)


def some_ids(dtype: str, bits: int | None = None) -> np.ndarray:
    """(40, 33) with the smallest and largest values of the type, up to 2^63 - 1."""
    if dtype.startswith("float"):
        low, high = -(2**20), 2**20
    else:
        limits = np.iinfo(dtype)
        low, high = int(limits.min), min(int(limits.max), 2**63 - 1)
    low, high = (0, 2**bits - 1) if bits else (low, high)
    ids = np.random.default_rng(bits).integers(low, high, (40, 33), endpoint=True)
    ids.flat[:2] = low, high
    return ids


def write(path: Path, ids: np.ndarray, dtype: str, **options: Any) -> None:
    shape = {"height": ids.shape[-2], "width": ids.shape[-1], "count": 1}
    with rasterio.open(path, "w", **{"driver": "GTiff", "dtype": dtype} | shape | options) as file:
        file.write(ids.astype(dtype).reshape(-1, *ids.shape[-2:]))
    with rasterio.open(path) as file:
        assert (file.read().squeeze() == ids).all()


@pytest.mark.parametrize("name", FILES)
def test_stored_files_are_what_gdal_reads(name: str) -> None:
    with rasterio.open(gdal_file(name)) as file:
        assert (file.read(1) == gdal_ids(name)).all()


KINDS = [("uint8", bits) for bits in range(1, 8)] + [("uint16", bits) for bits in (9, 12, 15)]
KINDS += [(dtype, None) for dtype in [*INTEGERS, "float32", "float64"]]


@pytest.mark.parametrize(("dtype", "bits"), KINDS)
def test_geotiffs(dtype: str, bits: int | None, tmp_path: Path) -> None:
    """Every compression, order of bytes, tiles, predictor; a remedy of each kind is tried."""
    ids, path = some_ids(dtype, bits), tmp_path / "label.tif"
    compressions = ["none", "deflate", "lzw", "packbits", "zstd", "lzma", "lerc", "ccittfax4"]
    layouts = [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16}, {"predictor": 2}]
    layouts += [{"predictor": 3}] * dtype.startswith("float")
    kinds = product(compressions, layouts, ("little", "big"), ("no", "yes"), ("black", "white"))
    written, refused = 0, set()
    for compression, layout, order, big, white in kinds:
        options = {"compress": compression, "endianness": order, "bigtiff": big} | layout
        options["photometric"] = f"minis{white}"
        try:
            write(path, ids, dtype, **options | ({"nbits": bits} if bits else {}))
        except (rasterio.errors.RasterioError, AssertionError):
            # GDAL has no such combination.
            continue
        written += 1
        try:
            np.testing.assert_array_equal(read_raster(path).values, ids, err_msg=str(options))
        except DatasetError as error:
            kind = str(error).replace(str(path), "")
            if kind not in refused:
                refused.add(kind)
                values = read_raster(remedied(path, str(error))).values
                np.testing.assert_array_equal(values, ids, err_msg=str(options))
    assert written >= 30 and len(refused) < 12


def test_bands_and_parts_that_were_never_written(tmp_path: Path) -> None:
    path = tmp_path / "label.tif"
    ids = np.stack([some_ids("uint8")] * 5)
    write(path, ids, "uint8", count=5)
    values, message = read_or_remedied(path)
    assert "5 bands" in message and (values == ids[0]).all()
    sparse = tmp_path / "gdal_sparse.tif"
    sparse.write_bytes(gdal_file("sparse").read_bytes())
    values, message = read_or_remedied(sparse)
    assert "never written" in message and (values == gdal_ids("sparse")).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint32", "uint16", "uint8"])
@pytest.mark.parametrize("bands", [1, 3, 5])
@pytest.mark.parametrize("compression", ["none", "lerc"])
def test_images_are_read_after_what_the_errors_say(
    dtype: str, bands: int, compression: str, tmp_path: Path
) -> None:
    path = tmp_path / "image.tif"
    values = np.random.default_rng(bands).integers(0, 256, (bands, 20, 24))
    try:
        write(path, values, dtype, count=bands, compress=compression)
    except rasterio.errors.RasterioError:
        pytest.skip("GDAL has no such combination")
    expected = values[{1: [0, 0, 0], 3: [0, 1, 2], 5: [2, 1, 0]}[bands]]
    for _ in range(3):
        try:
            image = read_image(path)
            break
        except DatasetError as error:
            path = remedied(path, str(error))
    else:
        raise AssertionError("no remedy has ended it")
    is_16_bit = bands == 1 and (dtype == "uint16" or (dtype, compression) == ("uint32", "none"))
    divided = (expected + 128) // 257 if is_16_bit else expected
    divided = expected >> 8 if dtype == "uint16" and bands > 1 else divided
    np.testing.assert_array_equal(image, np.moveaxis(divided, 0, 2))


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", "uint8"), (".png", "uint16"), (".png", "bool"), (".bmp", "uint8"), (".gif", "uint8")]
    + [(".tif", dtype) for dtype in [*INTEGERS, "float32", "float64", "bool"]],
)
def test_imageio(suffix: str, dtype: str, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 2, (40, 33)) if dtype == "bool" else some_ids(dtype)
    path = tmp_path / f"label{suffix}"
    imageio.imwrite(path, ids.astype(dtype))
    values, _ = read_or_remedied(path)
    np.testing.assert_array_equal(values, ids)


def test_imageio_writes_no_labels_as_jpeg(tmp_path: Path) -> None:
    ids = some_ids("uint8", 4)
    imageio.imwrite(tmp_path / "label.jpg", ids.astype(np.uint8))
    assert (read_raster(tmp_path / "label.jpg").values != ids).any()
