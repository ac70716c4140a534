"""Stored values of label files: read as another library wrote them, or refused with a remedy."""

from __future__ import annotations

import os
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers.gdal_files import FILES, REFUSED, gdal_file, gdal_ids
from helpers.label_writers import WRITERS, Writer
from helpers.tiffs import tiff
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tagclip.data.image_io import UnknownTiffError, read_header, read_image
from tagclip.data.raster import read_raster
from tagclip.errors import DatasetError


def _is_read(writer: Writer, folder: Path, shape: tuple[int, int], seed: int) -> bool:
    """Whether the values come back; if not, the refusal says what to do."""
    ids = np.random.default_rng(seed).integers(writer.low, writer.high, shape, endpoint=True)
    ids.flat[0], ids.flat[-1] = writer.low, writer.high
    path = folder / f"label{writer.suffix}"
    writer.write(str(path), ids)
    try:
        raster = read_raster(path)
    except DatasetError as error:
        assert re.fullmatch(rf"{re.escape(str(path))}: .+; .+", str(error)), writer.name
        return False
    expected = writer.stored(ids)
    if raster.values.ndim == 3 and expected.ndim == 2:
        full = np.full_like(ids, np.iinfo(raster.values.dtype).max)
        expected = np.stack([ids, ids, ids, full][: raster.values.shape[2]], 2)
    np.testing.assert_array_equal(raster.values, expected, err_msg=writer.name)
    kinds = (np.uint8, np.int32, np.int64) if raster.values.ndim == 2 else (np.uint8, np.uint16)
    assert raster.values.dtype in kinds
    return True


def test_every_kind_of_every_library(tmp_path: Path) -> None:
    refused = [w.name for w in WRITERS.values() if not _is_read(w, tmp_path, (19, 21), 0)]
    assert not [name for name in refused if WRITERS[name].is_common]
    # So that the list of common ones is no excuse.
    assert len(refused) < len(WRITERS) / 3


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(sorted(WRITERS)),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32),
)
def test_any_size(tmp_path: Path, name: str, height: int, width: int, seed: int) -> None:
    is_read = _is_read(WRITERS[name], tmp_path, (height, width), seed)
    assert is_read or not WRITERS[name].is_common


@pytest.mark.parametrize("name", FILES)
def test_files_of_gdal(name: str) -> None:
    if name in REFUSED:
        with pytest.raises(DatasetError, match=r"label file is a TIFF of .*; rio convert IN OUT"):
            read_raster(gdal_file(name))
        return
    raster = read_raster(gdal_file(name))
    np.testing.assert_array_equal(raster.values, gdal_ids(name))
    assert raster.palette is None


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("float32", "0 to 255.*rio convert IN OUT --dtype uint8 --scale-ratio A --scale-offset B"),
        ("float64", "0 to 255.*rio convert IN OUT --dtype uint8 --scale-ratio A --scale-offset B"),
        ("int64", "0 to 255.*rio convert IN OUT --dtype uint8 --scale-ratio A --scale-offset B"),
        ("lerc", "write it anew: .*rio convert IN OUT --co compress=deflate"),
        ("sparse", "never written.* write it anew: .*rio convert IN OUT --co compress=deflate"),
    ],
)
def test_images_of_gdal(name: str, remedy: str) -> None:
    """They are valid: nobody is told to replace them."""
    with pytest.raises(DatasetError, match=remedy) as caught:
        read_image(gdal_file(name))
    assert "expected 8-bit colour or 16-bit gray" in str(caught.value)
    assert "replace it" not in str(caught.value)


@pytest.mark.parametrize("bands", [2, 5])
def test_images_of_many_bands(bands: int, tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    tifffile.imwrite(
        path, np.zeros((4, 5, bands), np.uint16), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(DatasetError, match=rf"{bands} bands of 16-bit .*; rio calc"):
        read_image(path)


def test_palette_and_indices(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.frombytes("P", (16, 16), ids.tobytes())
    image.putpalette(colours.tobytes())
    for suffix in (".png", ".bmp", ".tif"):
        image.save(tmp_path / f"label{suffix}")
        raster = read_raster(tmp_path / f"label{suffix}")
        np.testing.assert_array_equal(raster.values, ids)
        np.testing.assert_array_equal(raster.palette, colours)


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".png"])
def test_further_pages_are_no_labels(suffix: str, tmp_path: Path) -> None:
    """Nobody can say which of them belongs to the image."""
    path = tmp_path / f"label{suffix}"
    pages = [Image.fromarray(np.full((4, 5), value, np.uint8)) for value in (1, 70, 200)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(DatasetError, match="3 pages or frames, expected one; save"):
        read_raster(path)


def test_further_pages_of_a_kind_that_pillow_does_not_read(tmp_path: Path) -> None:
    path = tmp_path / "label.tif"
    tifffile.imwrite(path, np.zeros((3, 4, 5), np.int64), photometric="minisblack")
    with pytest.raises(DatasetError, match="3 pages or frames, expected one; save"):
        read_raster(path)


def test_a_mask_of_a_label_is_no_page(tmp_path: Path) -> None:
    """As GDAL writes it into the file: Pillow does not know the kind of that page."""
    path, values = tmp_path / "label.tif", np.full((16, 16), 3, np.uint8)
    with tifffile.TiffWriter(path) as file:
        file.write(values, photometric="minisblack", metadata=None)
        file.write(values > 0, photometric=4, subfiletype=4, metadata=None)
    np.testing.assert_array_equal(read_raster(path).values, values)


@pytest.mark.parametrize("mode", ["LA", "PA"])
def test_transparent_labels_are_refused(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "label.tif"
    image = Image.frombytes(mode, (2, 1), bytes([3, 255, 4, 254]))
    image.save(path)
    with pytest.raises(DatasetError, match="1 pixels of the label are transparent.*; save it"):
        read_raster(path)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 2.0**63, 2**64 - 1])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint64"])
def test_no_class_ids(value: float, dtype: str, tmp_path: Path) -> None:
    if dtype == "uint64" and not isinstance(value, int):
        pytest.skip("no integer")
    path = tmp_path / "label.tif"
    values = np.zeros((3, 4), dtype)
    values[2, 1] = value
    tifffile.imwrite(path, values)
    message = r"has the value \S+ at \(1,2\), expected class ids.*; save the class ids as integers"
    with pytest.raises(DatasetError, match=message):
        read_raster(path)


def test_gray_values_of_a_pgm_are_not_stretched(tmp_path: Path) -> None:
    path = tmp_path / "label.pgm"
    path.write_bytes(b"P5\n3 2\n20\n" + bytes([0, 1, 2, 3, 19, 20]))
    assert read_raster(path).values.tolist() == [[0, 1, 2], [3, 19, 20]]
    path.write_text("P2\n3 2\n1000\n0 1 2\n3 19 1000\n")
    assert read_raster(path).values.tolist() == [[0, 1, 2], [3, 19, 1000]]


@pytest.mark.parametrize("bits", [1, 8])
def test_a_bmp_of_black_and_white(bits: int, tmp_path: Path) -> None:
    """Two colours, 8 x 1 pixels."""
    path = tmp_path / "label.bmp"
    pixels = bytes([0b10110000, 0, 0, 0]) if bits == 1 else bytes([1, 0, 1, 1, 0, 0, 0, 0])
    header = struct.pack("<IiiHHIIiiII", 40, 8, 1, 1, bits, 0, len(pixels), 0, 0, 2, 0)
    head = b"BM" + struct.pack("<IHHI", 62 + len(pixels), 0, 0, 62) + header
    path.write_bytes(head + bytes(4) + b"\xff" * 3 + b"\0" + pixels)
    if bits == 8:
        with pytest.raises(DatasetError, match="a BMP of 8 bits with .* black and white.*; save"):
            read_raster(path)
        return
    assert read_raster(path).values.tolist() == [[1, 0, 1, 1, 0, 0, 0, 0]]


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    """OpenCV, which reads 16 bits per colour, ends the process at such a text."""
    pixels = np.arange(36, dtype=np.uint16).reshape(3, 4, 3)
    path = tmp_path / os.fsdecode(b"caf\xe9.tif")
    path.write_bytes(tiff(pixels))
    np.testing.assert_array_equal(read_raster(path).values, pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64"])
def test_the_orientation_of_a_tiff(dtype: str, tmp_path: Path) -> None:
    """As Pillow turns the images beside them."""
    ids = np.arange(12).reshape(3, 4)
    path = tmp_path / "label.tif"
    for orientation in range(1, 9):
        extra = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(path, ids.astype(dtype), extratags=extra)
        tifffile.imwrite(tmp_path / "image.tif", ids.astype(np.uint8), extratags=extra)
        if dtype == "int64" and orientation > 4:
            # OpenCV, which reads 64 bits, does not turn so.
            with pytest.raises(DatasetError, match="Orientation tag; save it upright"):
                read_raster(path)
            continue
        values = read_raster(path).values
        np.testing.assert_array_equal(values, np.asarray(Image.open(tmp_path / "image.tif")))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_damaged_files_of_64_bits(compression: str | None, tmp_path: Path) -> None:
    path = tmp_path / "label.tif"
    ids = np.random.default_rng(0).integers(0, 2**40, (40, 50))
    tifffile.imwrite(path, ids, compression=compression)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(DatasetError, match="its pixels are damaged: replace it"):
        read_raster(path)


def test_errors_pass_between_processes() -> None:
    with pytest.raises(UnknownTiffError) as caught:
        read_image(gdal_file("lerc"))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value) and copy.header == caught.value.header


@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=1, max_size=4),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_tiffs_end_in_one_line(
    tmp_path: Path, name: str, changes: list[tuple[int, int]]
) -> None:
    """Tags of other types and sizes than they should be."""
    content = bytearray(gdal_file(name).read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / "label.tif"
    path.write_bytes(content)
    for read in (read_raster, read_image, read_header):
        try:
            read(path)
        except DatasetError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
