"""YOLO segmentation text: polygons in shares of the image, names from the data set."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagclip.data.formats.annotation import paint
from tagclip.data.formats.yolo_seg import class_names, read
from tagclip.errors import DatasetError

BOX = "0.1 0.2 0.5 0.2 0.5 0.8 0.1 0.8"


def make(root: Path, **texts: str) -> Path:
    """images/train and labels/train, with images of 20 x 10 pixels and one without text."""
    for folder in ("images/train", "labels/train"):
        (root / folder).mkdir(parents=True)
    for name in (*texts, "empty"):
        Image.new("RGB", (20, 10)).save(root / "images/train" / f"{name}.jpg")
    for name, text in texts.items():
        (root / "labels/train" / f"{name}.txt").write_text(text)
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nnames:\n  0: cat\n  1: dog\n")
    return root


@pytest.mark.parametrize("images", [None, "images"])
@pytest.mark.parametrize("yaml", ["", "data.yaml"])
def test_polygons_are_shares_of_the_image(tmp_path: Path, images: str | None, yaml: str) -> None:
    make(tmp_path, a=f"1 {BOX}\n\n0 0.2 0.3 0.3 0.3 0.3 0.5 0.2 0.5\n")
    (tmp_path / "train.txt").write_text("images/train/a.jpg\n")
    found = list(read(tmp_path / yaml, images and tmp_path / images))
    prefix = "" if images else "images/"
    assert [image.file for image in found] == [f"{prefix}train/a.jpg", f"{prefix}train/empty.jpg"]
    expected = np.full((10, 20), 9)
    expected[2:8, 2:10] = 1
    # The smaller one lies above.
    expected[3:5, 4:6] = 0
    assert np.array_equal(paint(found[0], {"cat": 0, "dog": 1}, 255, 9), expected)
    assert not found[1].segments


def test_text_beside_the_images(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.PNG")
    (tmp_path / "a.txt").write_text(f"0 {BOX}")
    (tmp_path / "classes.txt").write_text("cat\r\ndog\r\n")
    assert class_names(tmp_path) == ("cat", "dog")
    (image,) = read(tmp_path)
    assert image.file == "a.PNG" and image.segments[0].mask().sum() == 48


def test_two_images_or_texts_of_one_name(tmp_path: Path) -> None:
    """One of them would be left out."""
    make(tmp_path, a=f"1 {BOX}")
    Image.new("RGB", (20, 10)).save(other := tmp_path / "images/train/a.png")
    with pytest.raises(DatasetError, match=r"a\.png: found .*a\.jpg, too, .*; rename or r"):
        list(read(tmp_path))
    other.unlink()
    (folder := tmp_path / "train" / "labels").mkdir(parents=True)
    (folder / "a.txt").write_text(f"0 {BOX}")
    with pytest.raises(DatasetError, match=r"a\.txt: found .*a\.txt, too, .*; rename or r"):
        list(read(tmp_path))


@pytest.mark.parametrize("list_name", ["data.yaml", "classes.txt"])
def test_a_byte_order_mark_is_no_content(tmp_path: Path, list_name: str) -> None:
    """As Windows writes texts."""
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(f"0 {BOX}", encoding="utf-8-sig")
    text = "names: [cat, dog]" if list_name == "data.yaml" else "cat\ndog\n"
    (tmp_path / list_name).write_text(text, encoding="utf-8-sig")
    (image,) = read(tmp_path)
    expected = np.zeros((10, 20), bool)
    expected[2:8, 2:10] = True
    (segment,) = image.segments
    assert segment.name == "cat" and np.array_equal(segment.mask(), expected)


@pytest.mark.parametrize(
    ("names", "expected"),
    [("[cat, dog]", ("cat", "dog")), ("{1: dog, 0: cat}", ("cat", "dog")), ("[3]", ("3",))],
)
def test_names(tmp_path: Path, names: str, expected: tuple[str, ...]) -> None:
    (tmp_path / "x.yaml").write_text(f"names: {names}\n")
    assert class_names(tmp_path) == class_names(tmp_path / "x.yaml") == expected


def test_names_that_are_no_texts_to_yaml(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    for name, found in (("no", "False"), ("On", "True"), ("~", "None"), ("1.50", "1.5")):
        file.write_text(f"names: [cat, {name}]\n")
        text = f"x.yaml: found {found} as name 1, expected a text; put the name in quotes"
        with pytest.raises(DatasetError, match=re.escape(text)):
            class_names(tmp_path)
        file.write_text(f'names: [cat, "{name}"]\n')
        assert class_names(tmp_path) == ("cat", name)


@pytest.mark.parametrize(
    ("text", "message"),
    [("names: {0: a, 2: b}", "expected a list, or numbers"), ("names: [", "not a readable yaml")],
)
def test_damaged_names(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(DatasetError, match=message):
        class_names(tmp_path)
    (tmp_path / "x.yaml").unlink()
    with pytest.raises(DatasetError, match="found no class names"):
        class_names(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xff")
    with pytest.raises(DatasetError, match=r"classes\.txt: line 1 holds the byte 0xff, which"):
        class_names(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.1 0.1 0.2 0.2", r"a\.txt, line 1: found a box, expected a polygon"),
        (f"0 {BOX}\n2 {BOX}", r"line 2: found the class 2, expected 0\.\.1"),
        (f"0.5 {BOX}", "found the class 0.5"),
        ("0 1 1 20 1 20 9", r"found coordinates 1\.\.20, expected shares"),
        (
            "0 nan 0 0.1 0.1 0.2 0.2",
            r"a\.txt, line 1: found the coordinate nan, expected finite numbers",
        ),
        ("0 0.1 0.1 0.2 0.2 0.3", "polygon of 5 numbers"),
        ("cat 1", "expected numbers"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    make(tmp_path, a=text)
    with pytest.raises(DatasetError, match=message):
        list(read(tmp_path))


def test_a_text_without_image(tmp_path: Path) -> None:
    make(tmp_path, a="")
    (tmp_path / "labels/train/lost.txt").write_text("")
    with pytest.raises(DatasetError, match=r"lost\.txt: found no image train/lost below"):
        list(read(tmp_path))
