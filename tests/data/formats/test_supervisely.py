"""The project that Supervisely's SDK wrote, and small changes of it."""

from __future__ import annotations

import base64
import io
import json
import pickle
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.annotated_scene import CAR, HEIGHT, SPOT, TREE, WIDTH, painted
from helpers.paths import STORED
from helpers.pictures import huge_png
from PIL import Image, ImageDraw

from tagclip.data.formats import supervisely
from tagclip.data.formats.annotation import paint
from tagclip.errors import DatasetError

FOLDER = STORED / "supervisely"
NAMES = ("tree", "car", "sky", "sign", "nose")
VALUES = {name: index + 1 for index, name in enumerate(NAMES)}
SIGN = np.zeros((HEIGHT, WIDTH), bool)
SIGN[5:9, 9:12] = True


def outlined(outline: list[tuple[int, int]], *holes: list[tuple[int, int]]) -> np.ndarray:
    """Pillow's polygon, which covers the pixels of its corners and edges, too."""
    image = Image.new("L", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(image)
    draw.polygon(outline, fill=1)
    for hole in holes:
        draw.polygon(hole, fill=0)
    return np.asarray(image) > 0


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(FOLDER, tmp_path / "project")
    return tmp_path / "project"


def change(project: Path, apply) -> Path:
    path = project / "ds0" / "ann" / "a.png.json"
    content = json.loads(path.read_text())
    apply(content)
    path.write_text(json.dumps(content))
    return path


def test_the_stored_project(caplog: pytest.LogCaptureFixture) -> None:
    assert supervisely.class_names(FOLDER) == NAMES
    image, empty = supervisely.read(FOLDER)
    assert (image.file, image.size) == ("ds0/img/a.png", (HEIGHT, WIDTH))
    assert (empty.file, empty.segments) == ("ds0/datasets/inner/img/b.jpg", ())
    sky, *others = image.segments
    expected = [("tree", TREE), ("car", CAR), ("tree", SPOT), ("sign", SIGN)]
    assert [segment.name for segment in others] == [name for name, _ in expected]
    for segment, (name, mask) in zip(others, expected, strict=True):
        assert (pickle.loads(pickle.dumps(segment)).mask() == mask).all(), name
    # OpenCV and Pillow choose other pixels along oblique edges only.
    mask = outlined([(0, 0), (5, 0), (8, 4), (1, 6)], [(2, 2), (4, 2), (4, 4)])
    assert (sky.mask() != mask).sum() <= 4 and sky.mask()[0, :6].all() and not sky.mask()[2, 3]
    layers = ((VALUES[s.name], s.mask()) for s in image.segments)
    assert (paint(image, VALUES, 255, 0) == painted(*layers)).all()
    assert "1 point" in caplog.text


def test_one_data_set_of_a_project() -> None:
    assert supervisely.class_names(FOLDER / "ds0") == NAMES
    assert [image.file for image in supervisely.read(FOLDER / "ds0")] == [
        "img/a.png",
        "datasets/inner/img/b.jpg",
    ]


@pytest.mark.parametrize("there", ["ds0/img/a.png", "ds0/a.png", "img/a.png", "a.png"])
def test_names_of_images(tmp_path: Path, there: str) -> None:
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).touch()
    assert next(iter(supervisely.read(FOLDER, tmp_path))).file == there


def encoded(image: Image.Image, is_packed: bool = True, **options: object) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    content = file.getvalue()
    return base64.b64encode(zlib.compress(content) if is_packed else content).decode()


def kinds() -> dict[str, str]:
    """A bitmap of 3x2 pixels, of which two are not set, in every form that versions wrote."""
    mask = np.array([[1, 1, 0], [1, 0, 1]], np.uint8)
    gray = Image.fromarray(mask * 255)
    palette = Image.fromarray(mask).convert("P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    dark = palette.copy()
    dark.putpalette([255, 255, 255, 0, 0, 0])
    rgba = Image.merge("RGBA", [Image.new("L", (3, 2), 9)] * 3 + [gray])
    return {
        "gray": encoded(gray),
        "bits": encoded(gray.convert("1")),
        "palette": encoded(palette, transparency=0),
        "palette of dark on light": encoded(dark, transparency=0),
        "rgba": encoded(rgba),
        "not packed": encoded(rgba, is_packed=False),
    }


@pytest.mark.parametrize("kind", kinds())
def test_kinds_of_bitmaps(project: Path, kind: str) -> None:
    bitmap = {"origin": [9, 7], "data": kinds()[kind]}
    change(project, lambda content: content["objects"][1].update(bitmap=bitmap))
    mask = next(iter(supervisely.read(project))).segments[1].mask()
    assert np.argwhere(mask).tolist() == [[7, 9], [7, 10], [8, 9], [8, 11]]


def bitmap(**changes: object):
    return lambda content: content["objects"][1]["bitmap"].update(changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.pop("size"), "found damaged annotations .KeyError: 'size'"),
        (lambda c: c["size"].update(width=0), "found the image size 0 x 9"),
        (bitmap(origin=[7, 1]), r"found a bitmap of 6x4 pixels at \(7, 1\), expected it within"),
        (bitmap(origin=[-1, 1]), "expected it within the image of 12x9"),
        (bitmap(data="x"), "found damaged annotations"),
        (bitmap(data="eJzr"), "found a bitmap that ends early"),
        (bitmap(data=base64.b64encode(b"text").decode()), "found a damaged bitmap"),
        (
            bitmap(data=base64.b64encode(zlib.compress(b"text")).decode()),
            "found a damaged bitmap",
        ),
        (bitmap(data=base64.b64encode(zlib.compress(bytes(1 << 29))).decode()), "256 MiB"),
        (lambda c: c["objects"][0].update(points={"exterior": []}), "a polygon without points"),
        (
            lambda c: c["objects"][0].update(points={"exterior": [[1e9, 0]]}),
            "found a point that is no pixel",
        ),
        (
            lambda c: c["objects"][0].update(points={"exterior": [[12, 1], [20, 1], [20, 5]]}),
            "found a polygon at x 12..20, y 1..5, outside the 12x9 image; are these the images",
        ),
        (
            lambda c: c["objects"][0].update(points={"exterior": [[1, -9], [5, -9], [5, -1]]}),
            "found a polygon at x 1..5, y -9..-1, outside the 12x9 image",
        ),
        (
            lambda c: c["objects"][4].update(points={"exterior": [[30, 20], [20, 12]]}),
            "found a rectangle at x 20..30, y 12..20, outside the 12x9 image",
        ),
        (lambda c: c["objects"][0].pop("points"), "found damaged annotations"),
        (lambda c: c["objects"][4].update(points={"exterior": [[1, 1]]}), "damaged annotations"),
    ],
)
def test_damage_is_one_line(project: Path, damage, message: str) -> None:
    path = change(project, damage)
    with pytest.raises(DatasetError, match=message) as raised:
        paint(next(iter(supervisely.read(project))), VALUES, 255, 0)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def test_a_bitmap_larger_than_pillow_opens(project: Path) -> None:
    data = base64.b64encode(zlib.compress(huge_png(20000))).decode()
    path = change(project, bitmap(data=data))
    with pytest.raises(DatasetError, match="found a damaged bitmap .*400000000 pixels") as raised:
        paint(next(iter(supervisely.read(project))), VALUES, 255, 0)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("corners", "rows", "columns"),
    [([[11, 2], [30, 4]], slice(2, 5), slice(11, 12)), ([[-5, -5], [0, 0]], slice(1), slice(1))],
)
def test_shapes_that_reach_into_the_image(
    project: Path, corners: list[list[int]], rows: slice, columns: slice
) -> None:
    change(project, lambda c: c["objects"][4].update(points={"exterior": corners}))
    mask = next(iter(supervisely.read(project))).segments[4].mask()
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[rows, columns] = True
    assert np.array_equal(mask, expected)


def test_kinds_that_are_not_read_are_called_so(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(project, lambda c: c["objects"][1].update(geometryType="alpha_mask"))
    list(supervisely.read(project))
    assert "for it covers no pixels or has no class: 1 point\n" in caplog.text
    said = "for this kind is not read: 1 alpha_mask; export it as polygons or masks\n"
    assert said in caplog.text


def test_no_project(project: Path) -> None:
    with pytest.raises(DatasetError, match=r"found no \*/ann/\*\.json"):
        list(supervisely.read(project / "ds0" / "ann"))
    (project / "meta.json").unlink()
    with pytest.raises(DatasetError, match=r"meta\.json: found .*No such file"):
        supervisely.class_names(project)
