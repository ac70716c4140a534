"""CVAT's xml: a stored one as its server writes it, one that datumaro wrote, and damage."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.annotated_scene import (
    BOX,
    CAR,
    ELLIPSE,
    HEIGHT,
    LINE,
    SKY,
    SPOT,
    TREE,
    WIDTH,
    painted,
)
from helpers.paths import STORED

from tagclip.data.formats import cvat
from tagclip.data.formats.annotation import paint
from tagclip.errors import DatasetError

FILES = STORED / "cvat"
NAMES = ("tree", "car & bus", "sky", "road")


def labels(image, names: tuple[str, ...]):
    return paint(image, {name: index + 1 for index, name in enumerate(names)}, 255, 0)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_as_the_server_writes_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, chunk: int
) -> None:
    monkeypatch.setattr(cvat, "_CHUNK", chunk)
    assert cvat.class_names(FILES) == NAMES
    image, empty = cvat.read(FILES)
    assert (image.file, image.size) == ("scene 1/a.png", (HEIGHT, WIDTH))
    # By z_order, then as in the file.
    expected = [
        ("road", ELLIPSE),
        ("tree", TREE),
        ("road", LINE),
        ("sky", SKY),
        ("car & bus", CAR),
        ("tree", SPOT),
        ("road", BOX),
    ]
    assert [segment.name for segment in image.segments] == [name for name, _ in expected]
    for segment, (name, mask) in zip(image.segments, expected, strict=True):
        assert (segment.mask() == mask).all(), name
    layers = ((NAMES.index(name) + 1, mask) for name, mask in expected)
    assert (labels(image, NAMES) == painted(*layers)).all()
    assert (empty.file, empty.segments) == ("scene 1/empty.png", ())
    assert "1 polyline, 1 skeleton" in caplog.text and "1 tag" not in caplog.text


def test_as_datumaro_writes_it(caplog: pytest.LogCaptureFixture) -> None:
    path = FILES / "datumaro.xml"
    assert cvat.class_names(path) == ("tree", "car", "sky", "road")
    (image,) = cvat.read(path)
    assert image.file == "sub/a.jpg"
    # It has no ellipses.
    layers = ((1, TREE), (3, SKY), (2, CAR), (4, BOX))
    assert (labels(image, cvat.class_names(path)) == painted(*layers)).all()
    assert "1 points, 1 polyline" in caplog.text


def test_a_turned_box(tmp_path: Path) -> None:
    text = (FILES / "annotations.xml").read_text()
    # By a quarter around its middle, (3, 2): six by four becomes four by six.
    box = 'xtl="0.00" ytl="0.00" xbr="6.00" ybr="4.00" rotation="90.00"'
    text = text.replace('xtl="9.00" ytl="5.00" xbr="12.00" ybr="9.00"', box)
    (tmp_path / "annotations.xml").write_text(text)
    mask = next(iter(cvat.read(tmp_path))).segments[-1].mask()
    assert mask[:5, 1:5].all() and mask.sum() == 20


def write(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    text = (FILES / "annotations.xml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "annotations.xml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('width="12" height="9"', "", "scene 1/a.png: found the image size None x None"),
        ('width="12"', 'width="0"', "found the image size '0' x '9'"),
        ('rle="0, 24"', 'rle="0, 23"', "a.png: found run lengths of 23 pixels, expected 6x4"),
        ('rle="0, 24"', 'rle="0, 25, -1"', "found run lengths of 24 pixels, expected 6x4"),
        ('rle="0, 24"', 'rle="0, x"', "found damaged annotations"),
        ('left="2"', 'left="7"', r"found a mask of 6x4 pixels at \(7, 1\), expected it within"),
        ('left="2"', 'left="-1"', r"found a mask of 6x4 pixels at \(-1, 1\), expected it within"),
        ("0.00,0.00;6.00,0.00;", "", "found a polygon of 4 numbers, expected three or more"),
        ("0.00,0.00;6.00", "nan,0.00;6.00", "found the coordinate nan, expected finite numbers"),
        ('xtl="9.00"', 'xtl="-inf"', "found the coordinate -?(inf|nan), expected finite numbers"),
        ('cx="3.00"', 'cx="inf"', "found an ellipse of"),
        ('z_order="1"', 'z_order="top"', "found damaged annotations"),
        ('label="sky" ', "", "found damaged annotations .KeyError: 'label'"),
        ('name="scene 1/a.png" ', "", "image without a name: found damaged annotations"),
        ('name="scene 1/a.png"', 'name="../a.png"', r"found the image name '\.\./a\.png'"),
        ("</annotations>", "", "found no element found"),
        ("<version>", "<version", "found not well-formed"),
        ("<meta>", '<meta><track id="0">', 'export the task as "CVAT for images 1.1"'),
    ],
)
def test_damage_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path, (old, new))
    with pytest.raises(DatasetError, match=message) as raised:
        list(cvat.read(path))
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;&x;&x;">]>',
        '<!DOCTYPE a SYSTEM "file:///etc/hostname">',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>',
    ],
)
def test_no_entity_is_expanded(tmp_path: Path, doctype: str) -> None:
    path = write(tmp_path, ("<annotations>", f"{doctype}<annotations>"), ("scene</name>", "&x;"))
    for function in (cvat.class_names, lambda path: list(cvat.read(path))):
        with pytest.raises(DatasetError, match="found a document type, expected none"):
            function(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"<html></html>", b"\xff\xfe\0\0", b"PK\3\4"])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.xml: found .*expected"):
        list(cvat.read(path))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"annotations\.xml: found .*No such file"):
        cvat.class_names(tmp_path)
