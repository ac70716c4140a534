"""Images in any form: the bits of the file, its errors under another name, their size in memory."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.pictures import picture
from helpers.tiffs import tiff
from helpers.tiny_run import changed
from PIL import Image

from tagclip.data.image_io import UnknownTiffError, image_size, read_image
from tagclip.data.prepared_image import ImagePreparer, PreparedImage
from tagclip.errors import DatasetError

RGB = picture(40, 57)
FILES = Path(__file__).parent / "files"


def _file(suffix: str, mode: str = "RGB", **options: Any) -> bytes:
    image, file = Image.fromarray(RGB).convert(mode), io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _file("JPEG", exif=exif)


READABLE = {
    "jpeg": _file("JPEG"),
    "gray jpeg": _file("JPEG", "L"),
    "CMYK jpeg": _file("JPEG", "CMYK"),
    "progressive jpeg": _file("JPEG", progressive=True, subsampling="4:2:0"),
    **{f"jpeg turned {i}": _turned(i) for i in range(1, 9)},
    "jpeg with more behind it": _file("JPEG") + b"more",
    "png": _file("PNG"),
    "png with alpha": _file("PNG", "RGBA"),
    "palette png": _file("PNG", "P"),
    "gif": _file("GIF"),
    "bmp": _file("BMP"),
    "webp": _file("WEBP"),
    "ppm": _file("PPM"),
    "tiff": _file("TIFF"),
    "compressed tiff": _file("TIFF", compression="tiff_lzw"),
    "tiff of 16 bits": tiff(RGB.astype(np.uint16) * 257),
    "tiff of 5 bands": tiff(np.dstack([RGB, RGB[:, :, :2]]), (0, 0)),
}
BROKEN = {
    "empty": b"",
    "html": b" <!doctype html><p>404",
    "text": b"no image at all",
    "half a jpeg": _file("JPEG")[:-200],
    "half a png": _file("PNG")[:-200],
    **{path.name: path.read_bytes() for path in sorted(FILES.glob("*.tif"))},
}
# Gray files that are read.
for name in ("int8", "nbits1", "nbits2", "nbits4", "overview", "white_is_zero"):
    READABLE[name] = BROKEN.pop(f"gdal_{name}.tif")


@pytest.fixture
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "file"
    path.write_bytes(request.param)
    return path


@pytest.fixture
def preparer(tiny_cfg: CfgNode) -> ImagePreparer:
    return ImagePreparer.from_config(tiny_cfg)


@pytest.mark.parametrize("path", READABLE.values(), ids=READABLE.keys(), indirect=True)
def test_bytes_have_the_pixels_of_the_file(path: Path) -> None:
    content = path.read_bytes()
    assert image_size(content) == image_size(path) == read_image(path).shape[:2]
    for least in (None, (9, 9)):
        for form in ("RGB", "BGR"):
            np.testing.assert_array_equal(
                read_image(content, form, least=least), read_image(path, form, least=least)
            )


@pytest.mark.parametrize("path", BROKEN.values(), ids=BROKEN.keys(), indirect=True)
def test_broken_bytes_have_the_error_of_the_file_under_their_name(
    path: Path, preparer: ImagePreparer
) -> None:
    with pytest.raises(DatasetError) as of_path:
        read_image(path)
    with pytest.raises(DatasetError) as of_bytes:
        read_image(path.read_bytes(), name="a/b.jpg")
    with pytest.raises(DatasetError) as renamed:
        read_image(path, name="a/b.jpg")
    expected = str(of_path.value).replace(str(path), "a/b.jpg")
    # Who gives a name has no dataset.
    expected = expected.removesuffix(" (of a dataset: DATASETS.ON_BAD_SAMPLE skip)")
    assert str(of_bytes.value) == str(renamed.value) == expected
    assert expected.startswith("a/b.jpg: ") and "\n" not in expected
    assert type(of_bytes.value) is type(of_path.value)
    for image in (path, path.read_bytes()):
        found = preparer.attempt(image, "a/b.jpg")
        assert type(found) is DatasetError and str(found) == expected
        assert found.__traceback__ is None and found.__context__ is None


def test_a_tiff_that_is_not_read_is_described_from_its_bytes() -> None:
    with pytest.raises(UnknownTiffError, match=r"^image: image is a TIFF of 1 band .*\(sparse\)"):
        read_image((FILES / "gdal_sparse.tif").read_bytes())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (_file("PNG"), "x: image has 57x40 pixels, INPUT.MAX_PIXELS allows 2000; make"),
        (Image.fromarray(RGB), "x: image has 57x40 pixels, INPUT.MAX_PIXELS allows 2000; make"),
        (np.zeros((1, 1000, 3), np.uint8), "x: image of 1000x1 pixels: a short side of 64 would"),
        (Path("nowhere.png"), "x: no such image; bring it back, or leave it out"),
        (Path(__file__).parent, "x: cannot decode this image (it is a folder)"),
        (np.zeros((4, 5), np.uint8), "x: found an array (4, 5), expected a BGR array"),
        (None, "x: found a NoneType, expected a BGR array"),
        (bytearray(b"x"), "x: found a bytearray, expected a BGR array"),
    ],
)
def test_an_error_names_the_image_once(tiny_cfg: CfgNode, image: Any, message: str) -> None:
    preparer = ImagePreparer.from_config(changed(tiny_cfg, "INPUT.MAX_PIXELS", 2000))
    if isinstance(image, np.ndarray) and image.ndim == 3:
        preparer.max_pixels = preparer.inputs.views[0].augmentations[0].max_pixels = 999
    with pytest.raises(DatasetError) as error:
        preparer(image, "x")
    assert str(error.value).startswith(message) and str(error.value).count("x: ") == 1


@pytest.mark.parametrize(
    "image", [None, bytearray(b"x"), b"x", "nowhere.png", np.zeros(3), np.zeros((0, 5, 3))]
)
def test_what_is_no_image_takes_no_memory(preparer: ImagePreparer, image: Any) -> None:
    assert preparer.nbytes(image) == 0


def test_the_memory_of_an_image_is_known_without_decoding_it(
    preparer: ImagePreparer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow decodes a PNG where it is asked for its orientation."""
    path = tmp_path / "a.png"
    Image.new("RGB", (91, 64)).save(path)
    expected = preparer.nbytes(np.zeros((64, 91, 3), np.uint8)) + 3 * 64 * 91

    def load(image: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", load)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    assert preparer.nbytes(path) == expected
    with pytest.raises(AssertionError, match="decoded"):
        image_size(path)


@pytest.mark.parametrize("form", ["RGB", "BGR"])
def test_every_form_of_an_image_is_prepared_alike(
    tiny_cfg: CfgNode, tmp_path: Path, form: str
) -> None:
    """A short side of 64 pixels, resized by OpenCV, and channels as the model takes them."""
    (tmp_path / "a.png").write_bytes(_file("PNG"))
    expected = cv2.resize(RGB if form == "RGB" else RGB[:, :, ::-1], (91, 64))
    preparer = ImagePreparer.from_config(changed(tiny_cfg, "INPUT.FORMAT", form))
    bgr = np.ascontiguousarray(RGB[:, :, ::-1])
    forms = [bgr, Image.fromarray(RGB), str(tmp_path / "a.png"), tmp_path / "a.png", _file("PNG")]
    for image in forms:
        for other in (preparer, pickle.loads(pickle.dumps(preparer))):
            found = other(image, "a", keep_pixels=True)
            assert (found.name, found.size) == ("a", (40, 57))
            assert found.input["image"].shape == (3, 64, 91)
            np.testing.assert_array_equal(found.input["image"].permute(1, 2, 0), expected)
            np.testing.assert_array_equal(found.pixels, bgr)
            assert found.nbytes == 3 * (64 * 91 + 40 * 57)
            assert pickle.loads(pickle.dumps(found)).nbytes == found.nbytes
        assert other(image, "a").pixels is None and other(image, "a").nbytes == 3 * 64 * 91
        held = len(image) if isinstance(image, bytes) else 0
        copies = 1 if isinstance(image, np.ndarray) else 2
        assert preparer.nbytes(image) == 3 * (64 * 91 + copies * 40 * 57) + held


def test_all_views_are_counted(tiny_cfg: CfgNode) -> None:
    opts = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (40, 80), "TEST.AUG.FLIP", True)
    preparer = ImagePreparer.from_config(changed(tiny_cfg, *opts))
    found = preparer(RGB, "a")
    assert isinstance(found, PreparedImage) and len(found.input["views"]) == 4
    assert torch.equal(found.input["views"][0]["image"], found.input["image"])
    assert found.nbytes == 3 * 2 * (40 * 57 + 80 * 114)
    assert preparer.nbytes(RGB) == found.nbytes + 3 * 40 * 57
