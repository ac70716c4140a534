"""Images and label files: lossless reading, clear refusals."""

from __future__ import annotations

import logging
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest
import tifffile
from detectron2.data.detection_utils import read_image as reference_read_image
from detectron2.utils import logger
from helpers.tiffs import tiff
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tagclip.data.image_io import image_size, is_dark, read_header, read_image
from tagclip.data.label_io import check_label, read_label
from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import ClassEntry, Vocabulary

VOC20 = Vocabulary.from_names([f"class {i}" for i in range(20)], name="voc20")


def _pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(height * width).integers(0, 256, shape, dtype=np.uint8)


def _write_gray_png(path: Path, values: np.ndarray, bits: int) -> None:
    """A gray PNG with 1, 2, 4, 8 or 16 bits per pixel, by the PNG specification."""
    height, width = values.shape
    rows = b""
    for row in values.astype(int):
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        content += struct.pack(">I", len(data)) + kind + data + checksum
    path.write_bytes(content)


@pytest.fixture
def said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """Log of a process that has said nothing yet."""
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
    monkeypatch.setattr(logging.getLogger("tagclip"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="tagclip")
    return caplog


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_gray_labels_of_every_depth_are_exact(bits: int, tmp_path: Path) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (5, 7))
    path = tmp_path / "label.png"
    _write_gray_png(path, values, bits)
    label = read_label(path)
    np.testing.assert_array_equal(label, values)
    assert label.dtype == (np.int32 if bits == 16 else np.uint8)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_palette_indices_are_kept(bits: int, tmp_path: Path) -> None:
    values = np.arange(2**bits, dtype=np.uint8).reshape(2, -1)
    image = Image.frombytes("P", values.shape[::-1], values.tobytes())
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    path = tmp_path / "label.png"
    image.save(path, bits=bits)
    label = read_label(path)
    np.testing.assert_array_equal(label, values)
    assert label.dtype == np.uint8


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "F"])
def test_labels_with_colours_or_fractions_are_refused(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "label.tif"
    image = Image.fromarray(_pixels(4, 5)).convert(mode)
    image = image.point(lambda value: value + 0.5) if mode == "F" else image
    image.save(path)
    found = {"CMYK": "CMYK", "F": r"the value \d+\.\d+"}.get(mode, "colours")
    with pytest.raises(DatasetError, match=rf"label\.tif: label .*{found}.*; save"):
        read_label(path)


def _damaged_files(folder: Path, suffix: str) -> list[Path]:
    good = folder / f"good{suffix}"
    Image.fromarray(_pixels(40, 60, 1)).save(good)
    content = good.read_bytes()
    contents = {
        "empty": b"",
        "page": b"<!DOCTYPE html><html>404</html>",
        "text": b"hello",
        "truncated": content[: len(content) // 2],
        "header": content[:20],
        "flipped": content[:100] + bytes(255 - b for b in content[100:200]) + content[200:],
    }
    paths = []
    for name, data in contents.items():
        paths.append(folder / f"{name}{suffix}")
        paths[-1].write_bytes(data)
    return paths


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("read", [read_image, read_label])
def test_damaged_files_are_named(read: Callable, suffix: str, tmp_path: Path) -> None:
    damaged = _damaged_files(tmp_path, suffix)
    if suffix == ".jpg":
        # A decoder cannot tell wrong JPEG coefficients from right ones.
        damaged = damaged[:-1]
    reasons = {}
    for path in [*damaged, tmp_path / "missing.png", tmp_path]:
        with pytest.raises(DatasetError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        reasons[path.stem] = message
    assert "it has 0 bytes" in reasons["empty"]
    assert "html" in reasons["page"]
    assert "no known image format" in reasons["text"]
    assert "no such" in reasons["missing"]
    assert "it is a folder" in reasons[tmp_path.stem]


@pytest.mark.parametrize("read", [read_image, read_label, read_header, image_size])
def test_a_named_pipe_is_refused_before_it_is_opened(read: Callable, tmp_path: Path) -> None:
    image, pipe = tmp_path / "image.png", tmp_path / "pipe.png"
    Image.new("L", (4, 4)).save(image)
    os.mkfifo(pipe)
    writer = Thread(target=lambda: pipe.write_bytes(image.read_bytes()), daemon=True)
    writer.start()
    with pytest.raises(DatasetError, match=rf"^{pipe}: .* \(it is no regular file\); replace it"):
        read(pipe)
    assert pipe.read_bytes() == image.read_bytes()
    writer.join()


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("format", ["RGB", "BGR"])
def test_images_are_upright_as_in_detectron2(orientation: int, format: str, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(_pixels(6, 9)).save(path, exif=exif)
    image = read_image(path, format)
    np.testing.assert_array_equal(image, reference_read_image(str(path), format))
    assert image.shape[:2] == ((9, 6) if orientation >= 5 else (6, 9))


def test_damaged_exif_does_not_stop_an_image(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(_pixels(6, 9)).save(path, exif=b"Exif\0\0II*\0garbage")
    assert read_image(path).shape == (6, 9, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK"])
def test_other_colour_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(_pixels(6, 9)).convert(mode)
    path = tmp_path / "image.tif"
    image.save(path)
    np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


def test_a_program_in_the_place_of_an_image_is_not_run(tmp_path: Path) -> None:
    """Pillow has Ghostscript run it, where that is installed."""
    Image.fromarray(_pixels(6, 9)).save(path := tmp_path / "image.eps")
    for read in (read_image, image_size, read_header):
        with pytest.raises(DatasetError, match=r"image\.eps: cannot decode .*EPS is a program"):
            read(path)


def test_16_bit_gray_is_scaled_with_one_warning(
    tmp_path: Path, said_once: pytest.LogCaptureFixture
) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for name in ("a.png", "b.png"):
        _write_gray_png(tmp_path / name, values, 16)
    image = read_image(tmp_path / "a.png")
    read_image(tmp_path / "b.png")
    np.testing.assert_array_equal(image[..., 0], np.rint(values / 257.0).astype(np.uint8))
    np.testing.assert_array_equal(image[..., 0], image[..., 2])
    assert len(said_once.records) == 1
    assert "a.png: 16-bit gray image" in said_once.text


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".png", ".webp", ".jpg"])
def test_the_first_of_several_pages_is_read_and_announced(
    suffix: str, said_once: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A camera's JPEG with a preview is one image."""
    path, kind = tmp_path / f"a{suffix}", {"format": "MPO"} if suffix == ".jpg" else {}
    pages = [Image.new("RGB", (32, 32), (value,) * 3) for value in (0, 70, 200)]
    pages[0].save(path, save_all=True, append_images=pages[1:], **kind)
    assert read_image(path).max() == 0 and read_image(path.read_bytes()).max() == 0
    assert [record.getMessage() for record in said_once.records] == [
        f"{path}: the first of 3 pages or frames is read; so are others like it"
    ] * (suffix != ".jpg")


@pytest.mark.parametrize(
    "second",
    [
        {"data": np.zeros((32, 32), np.float16)},
        # GDAL's mask of what is valid.
        {"data": np.zeros((32, 32), bool), "photometric": 4, "subfiletype": 4},
        b"\xff\xff\xff\x00",
    ],
    ids=["float16", "mask", "nowhere"],
)
def test_a_page_that_is_not_read_may_be_of_any_kind(
    second: dict | bytes, said_once: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path, pixels = tmp_path / "a.tif", np.full((32, 32, 3), 7, np.uint8)
    with tifffile.TiffWriter(path, byteorder="<") as file:
        file.write(pixels, photometric="rgb", metadata=None)
        if isinstance(second, dict):
            file.write(metadata=None, **second)
    if isinstance(second, bytes):
        # The place of the next page.
        content = bytearray(path.read_bytes())
        (first,) = struct.unpack_from("<I", content, 4)
        (count,) = struct.unpack_from("<H", content, first)
        content[first + 2 + 12 * count : first + 6 + 12 * count] = second
        path.write_bytes(content)
    for source in (path, path.read_bytes()):
        np.testing.assert_array_equal(read_image(source), pixels)
    is_page = isinstance(second, dict) and "subfiletype" not in second
    assert ("first of 2 pages" in said_once.text) == is_page


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".png", ".webp", ".jpg"])
def test_one_page_is_not_announced(
    suffix: str, said_once: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (32, 32)).save(path)
    read_image(path)
    if suffix == ".tif":
        # Smaller copies of the first page, as of a map, are no pages.
        with tifffile.TiffWriter(path) as file:
            file.write(np.zeros((64, 64, 3), np.uint8), photometric="rgb")
            file.write(np.zeros((32, 32, 3), np.uint8), photometric="rgb", subfiletype=1)
        read_image(path)
    assert not said_once.records


@pytest.mark.parametrize(
    ("bands", "extra", "said"),
    [
        (3, None, ""),
        (4, None, "first 3 of 4 bands"),
        (4, [0], "first 3 of 4 bands"),
        (4, [2], ""),
        (5, [0, 0], "first 3 of 5 bands"),
        (5, [2, 0], ""),
    ],
)
def test_further_bands_of_a_tiff(
    bands: int,
    extra: list[int] | None,
    said: str,
    said_once: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """Near infrared beside RGB is neither alpha nor colour."""
    pixels = np.random.default_rng(bands).integers(0, 65536, (6, 9, bands)).astype(np.uint16)
    path = tmp_path / "a.tif"
    # Pillow reads no 16-bit file of five bands.
    for content in (pixels >> 8).astype(np.uint8), *[pixels] * (bands < 5):
        path.write_bytes(tiff(content, extra))
        np.testing.assert_array_equal(read_image(path), pixels[..., :3] >> 8)
    assert (" bands are " in said_once.text) == bool(said) and said in said_once.text
    header = read_header(path)
    assert header.has_alpha == (extra in ([2], [2, 0]))
    assert header.further_bands == (bands - 3) * bool(said)


def test_associated_alpha_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(np.full((2, 2, 4), (50, 100, 20, 128), np.uint8), [1]))
    assert read_image(path)[0, 0].tolist() == [99, 199, 39]


def test_bands_one_after_the_other(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (6, 9, 3)).astype(np.uint16)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff((pixels >> 8).astype(np.uint8), separate=True))
    np.testing.assert_array_equal(read_image(path), pixels >> 8)
    path.write_bytes(tiff(pixels, separate=True))
    for read in (read_image, read_header):
        with pytest.raises(DatasetError, match="band after band; save it pixel after pixel"):
            read(path)


@pytest.mark.parametrize("name", ["gray.png", "gray.tif", "rgb.png", "rgb.tif", "rgba.png"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_fewer_bits_than_the_file(
    name: str, bits: int, said_once: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """They are named; the remedy that is named ends it."""
    shape = (20, 30, 4 if "rgba" in name else 3)[: 2 if "gray" in name else 3]
    values = np.random.default_rng(bits).integers(0, 2**bits, shape).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    path = str(tmp_path / name)
    cv2.imwrite(path, values)
    dark = read_image(path)
    assert read_header(path).is_16_bit
    assert is_dark(dark) == (bits < 16)
    assert said_once.text.count("16-bit") == 1 + (bits < 16)
    assert ("write copies with all values times 2^(16 - N)" in said_once.text) == (bits < 16)
    said_once.clear()
    logger._LOG_COUNTER.clear()
    cv2.imwrite(path, values * np.uint16(2 ** (16 - bits)))
    assert read_image(path).max() >= 254 and "dark" not in said_once.text


def test_dark_images_of_8_bits_are_nobodys_business(
    said_once: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    Image.fromarray(_pixels(6, 9) // 16).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").max() < 16 and not said_once.records


@pytest.mark.parametrize("value", [-1.0, 0.5, 70000.0])
def test_float_images_are_refused(value: float, tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(np.full((3, 4), value, dtype=np.float32)).save(path)
    with pytest.raises(DatasetError, match="expected 8-bit colour or 16-bit gray"):
        read_image(path)


def test_large_images_are_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(_pixels(10, 10)).save(path)
    assert read_image(path, max_pixels=100).shape == (10, 10, 3)
    content = path.read_bytes()
    # Damaged pixel data shows that nothing was decoded.
    path.write_bytes(content[:60])
    with pytest.raises(DatasetError, match=r"has 10x10 pixels, INPUT\.MAX_PIXELS allows 99"):
        read_image(path, max_pixels=99)


def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    _write_gray_png(path, np.zeros((2, 2)), 8)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(bytes(content))
    with pytest.raises(DatasetError, match=r"bomb\.png: image is larger than Pillow's limit"):
        read_image(path, max_pixels=64_000_000)


def test_valid_label_passes() -> None:
    label = np.array([[0, 19, 255], [3, 7, 255]], dtype=np.uint8)
    check_label(label, "a.png", VOC20, (2, 3))


def test_out_of_range_message_names_file_value_place_and_vocabulary() -> None:
    label = np.zeros((4, 6), dtype=np.uint8)
    label[1, 2] = 30
    label[3, 5] = 31
    expected = r"a\.png: label 30 at \(2,1\), vocabulary voc20 has 0\.\.19 and ignore 255"
    with pytest.raises(DatasetError, match=expected) as caught:
        check_label(label, "a.png", VOC20, (4, 6))
    assert "\n" not in str(caught.value)
    assert "background" not in str(caught.value)


def test_ids_with_gaps_are_listed() -> None:
    entries = tuple(ClassEntry(i, f"c{i}") for i in (0, 1, 2, 5, 8, 9))
    vocabulary = Vocabulary("gaps", entries, ignore_label=300)
    check_label(np.array([[0, 5, 9, 300]], dtype=np.int32), "a.png", vocabulary, (1, 4))
    for value in (3, 10, 255, 301, 65535, -1):
        label = np.array([[0, value]], dtype=np.int32)
        with pytest.raises(DatasetError, match=rf"label {value} at \(1,0\).* 0\.\.2, 5, 8\.\.9 "):
            check_label(label, "a.png", vocabulary, (1, 2))


@pytest.mark.parametrize(("ids", "value"), [((1, 2), 0), ((0, 1), 254), ((0, 1), 255)])
def test_a_value_that_may_be_unlabelled(ids: tuple[int, int], value: int) -> None:
    """Either remedy ends it."""
    label = np.array([[value, *ids]], np.uint8)
    entries = tuple(ClassEntry(i, f"c{i}") for i in ids)
    vocabulary = Vocabulary("two", entries, ignore_label=250)
    remedy = f'say "ignore_label": [250, {value}] in the vocabulary json, or give it a class there'
    with pytest.raises(DatasetError, match=re.escape(remedy)):
        check_label(label, "a.png", vocabulary, (1, 3))
    check_label(label, "a.png", replace(vocabulary, ignore_label=value), (1, 3))
    more = replace(vocabulary, classes=(*entries, ClassEntry(value, "background")))
    check_label(label, "a.png", more, (1, 3))


def test_background_gets_a_hint() -> None:
    label = np.zeros((10, 10), dtype=np.uint8)
    label[0] = np.arange(10)
    label[1] = np.arange(10, 20)
    label[2] = 20
    with pytest.raises(DatasetError, match="21 distinct values, 0 dominates.*reduce_zero_label"):
        check_label(label, "a.png", VOC20, (10, 10))


@pytest.mark.parametrize("size", [(6, 4), (4, 7), (2, 12)])
def test_size_mismatch_names_both_sizes(size: tuple[int, int]) -> None:
    label = np.zeros((4, 6), dtype=np.uint8)
    expected = rf"a\.png: label is 6x4 .* its image is {size[1]}x{size[0]}"
    with pytest.raises(DatasetError, match=expected) as caught:
        check_label(label, "a.png", VOC20, size)
    assert ("width and height are swapped" in str(caught.value)) == (size == (6, 4))
    assert "EXIF" not in str(caught.value)


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_swapped_sides_blame_an_exif_tag_only_if_it_turns(
    tmp_path: Path, orientation: int | None
) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    is_turned = orientation in (6, 8)
    image, size = tmp_path / "a.jpg", (6, 4) if is_turned else (4, 6)
    Image.new("RGB", (6, 4)).save(image, exif=exif)
    assert image_size(image) == size
    label = np.zeros(size[::-1], np.uint8)
    remedy = "rotate the label as the image's EXIF tag says"
    if not is_turned:
        remedy = "width and height are swapped: write the label again as its image is shown"
    with pytest.raises(DatasetError, match=f"; {remedy}$"):
        check_label(label, "a.png", VOC20, size, image)


@given(
    st.lists(st.integers(-3, 400), min_size=1, max_size=20),
    st.integers(1, 300),
    st.sampled_from([0, 5, 250]),
    st.sampled_from([255, 0, 77]),
    st.sampled_from([np.int32, np.uint8]),
)
def test_check_label_by_brute_force(values, count: int, first: int, ignored: int, dtype) -> None:
    entries = tuple(ClassEntry(first + i + (first + i >= ignored), f"c{i}") for i in range(count))
    vocabulary = Vocabulary("numbered", entries, ignore_label=ignored)
    known = {*(entry.id for entry in entries), ignored}
    label = np.array([values]).astype(dtype)
    values = label[0].tolist()
    wrong = [value for value in values if value not in known]
    if not wrong:
        check_label(label, "a.png", vocabulary, label.shape)
        return
    with pytest.raises(DatasetError, match=rf"label {wrong[0]} at \({values.index(wrong[0])},0\)"):
        check_label(label, "a.png", vocabulary, label.shape)
