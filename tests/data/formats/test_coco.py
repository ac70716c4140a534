"""COCO json: what is painted equals what pycocotools' own API makes of each annotation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tagclip.data.formats.annotation import paint
from tagclip.data.formats.coco import class_names, read
from tagclip.errors import DatasetError

VALUES = {"sky": 0, "person": 1, "dog": 2}


def tree() -> dict[str, Any]:
    """Things and stuff, all kinds of segmentation, overlaps, an image without annotations."""
    blob = np.zeros((20, 30), np.uint8)
    blob[3:15, 4:25] = 1
    packed = coco_mask.encode(np.asfortranarray(blob))
    # Smaller than the things on it.
    runs = [60, 100, 440]
    rows = [
        (7, 0, [[0, 0, 30, 0, 30, 10, 0, 10]]),
        (90, 0, [[2, 2, 12.5, 2, 12.5, 17, 2, 17]]),
        (91, 0, {"size": [20, 30], "counts": packed["counts"].decode()}),
        (90, 1, {"size": [20, 30], "counts": runs}),
        (91, 0, [[20, 12, 29, 12, 29, 19], [1, 15, 6, 15, 6, 19]]),
    ]
    return {
        "images": [
            {"id": 5, "file_name": "a\\b.jpg", "height": 20, "width": 30},
            {"id": 3, "file_name": "empty.jpg", "height": 4, "width": 6},
        ],
        "categories": [
            {"id": 7, "name": "sky", "isthing": 0},
            {"id": 90, "name": "person", "isthing": 1},
            {"id": 91, "name": "dog", "isthing": 1},
        ],
        "annotations": [
            {"id": n, "image_id": 5, "category_id": c, "iscrowd": crowd, "segmentation": s}
            for n, (c, crowd, s) in enumerate(rows)
        ],
    }


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_equals_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = written(tmp_path / "a.json", tree())
    assert class_names(path) == ("sky", "person", "dog")
    first, second = read(path)
    assert (first.file, first.size, second.file, second.size) == (
        "a/b.jpg",
        (20, 30),
        "empty.jpg",
        (4, 6),
    )
    api = COCO(str(path))
    expected = np.full((20, 30), 9)
    masks = {n: api.annToMask(api.anns[n]).astype(bool) for n in api.anns}
    # Stuff, then the crowd, then things: the larger first.
    things = sorted((1, 2, 4), key=lambda n: -masks[n].sum())
    for number, value in ((0, 0), (3, 255), *((n, {1: 1, 2: 2, 4: 2}[n]) for n in things)):
        expected[masks[number]] = value
    assert np.array_equal(paint(first, VALUES, 255, 9), expected)
    assert set(np.unique(expected)) == {0, 1, 2, 9, 255}
    assert (paint(second, VALUES, 255, 9) == 9).all()


def test_truth_values_are_flags_too(tmp_path: Path) -> None:
    content = tree()
    plain = list(read(written(tmp_path / "a.json", content)))[0]
    for row in content["annotations"]:
        row["iscrowd"] = bool(row["iscrowd"]) or None
    for row in content["categories"]:
        row["isthing"] = bool(row["isthing"])
    found = list(read(written(tmp_path / "b.json", content)))[0]
    assert [(s.order, s.is_ignored) for s in found.segments] == [
        (s.order, s.is_ignored) for s in plain.segments
    ]
    assert [s.is_ignored for s in found.segments] == [False, False, False, True, False]


IDS = np.array([[0, 1, 70000], [300, 300, 1]])
SEGMENTS = [(1, 7, 0), (70000, 91, 0), (300, 90, 1)]


def panoptic(
    tmp_path: Path, ids: np.ndarray, segments: list[tuple[int, int, int]], swapped: bool = False
) -> Path:
    """A json of one image with (id, category, crowd), and its png."""
    content = tree()
    (tmp_path / "p").mkdir()
    digits = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    Image.fromarray(digits[..., ::-1] if swapped else digits).save(tmp_path / "p" / "x.png")
    content["images"] = [{"id": 1, "file_name": "x.jpg", "height": 2, "width": 3}]
    content["annotations"] = [
        {
            "image_id": 1,
            "file_name": "x.png",
            "segments_info": [
                {"id": n, "category_id": c, "iscrowd": crowd} for n, c, crowd in segments
            ],
        }
    ]
    return written(tmp_path / "p.json", content)


def test_panoptic(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (image,) = read(panoptic(tmp_path, IDS, SEGMENTS))
    assert paint(image, VALUES, 255, 9).tolist() == [[9, 0, 2], [255, 255, 0]]
    assert not caplog.text


def test_segments_that_a_smaller_png_has_lost_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (image,) = read(panoptic(tmp_path, IDS, [*SEGMENTS, (8, 91, 0), (9, 91, 0)]))
    assert not caplog.text
    assert paint(image, VALUES, 255, 9).tolist() == [[9, 0, 2], [255, 255, 0]]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path / 'p' / 'x.png'}: 2 of the 5 segments have no pixel, the first is id 8"
    )


@pytest.mark.parametrize(
    ("ids", "segments", "swapped", "message"),
    [
        (
            IDS,
            SEGMENTS,
            True,
            r"the colour \[0, 0, 1\], id 65536, .* \(3 such ids\), and 3 of the 3 segments have no "
            "pixel, the first is id 1; red and blue are swapped, .*: write the pngs as RGB",
        ),
        (
            IDS,
            SEGMENTS[1:],
            False,
            r"the colour \[1, 0, 0\], id 1, that no entry of segments_info has \(1 such ids\), and "
            "0 of the 2 segments have no pixel; take the json and the pngs of one export",
        ),
        (IDS * 0, SEGMENTS, False, "found 3 of the 3 segments have no pixel, the first is id 1;"),
        (
            IDS,
            [],
            False,
            r"the colour \[1, 0, 0\], id 1, .* \(3 such ids\), and 0 of the 0 segments",
        ),
    ],
)
def test_a_png_of_other_segments(
    tmp_path: Path,
    ids: np.ndarray,
    segments: list[tuple[int, int, int]],
    swapped: bool,
    message: str,
) -> None:
    with pytest.raises(DatasetError, match=message) as found:
        (image,) = read(panoptic(tmp_path, ids, segments, swapped))
        paint(image, VALUES, 255, 9)
    assert str(found.value).startswith(f"{tmp_path / 'p' / 'x.png'}: found ")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("images"), "images is None, expected a list"),
        (
            lambda t: t["images"][0].pop("height"),
            r"images\[0\]: found the image size \d+ x None, expected width and",
        ),
        (lambda t: t["images"][0].update(width=0), r"found the image size 0 x 20"),
        (lambda t: t["annotations"][1].update(image_id=8), r"annotations\[1\]: image_id is 8"),
        (
            lambda t: t["annotations"][1].update(category_id=8),
            r"annotations\[1\]: category_id is 8",
        ),
        (lambda t: t["annotations"][1].pop("segmentation"), r"annotations\[1\]: found no segm"),
        (
            lambda t: t["annotations"][1].update(segmentation=[]),
            r"annotations\[1\]: found no segmentation, .*; boxes alone are no masks",
        ),
        (
            lambda t: t["annotations"][3].update(segmentation=[]),
            r"annotations\[3\]: found no segmentation",
        ),
        (lambda t: t["annotations"][1].update(segmentation=[[]]), r"polygon of 0 numbers"),
        (
            lambda t: t["annotations"][3]["segmentation"].update(counts=[]),
            r"annotations\[3\]: found run lengths of 0 pixels, expected 30x20",
        ),
        (lambda t: t["annotations"][1].update(segmentation=[[1, 2]]), r"polygon of 2 numbers"),
        (
            lambda t: t["annotations"][1].update(segmentation=[[1, 1, float("inf"), 2, 3, 3]]),
            r"annotations\[1\]: found the coordinate inf, expected finite numbers; export",
        ),
        (
            lambda t: t["annotations"][1].update(iscrowd="0"),
            r"annotations\[1\]: iscrowd is '0', expected 0, 1, true or false; export it again",
        ),
        (lambda t: t["annotations"][3].update(iscrowd=2), r"annotations\[3\]: iscrowd is 2, exp"),
        (lambda t: t["annotations"][3].update(iscrowd=[]), r"iscrowd is \[\], expected 0, 1"),
        (lambda t: t["categories"][0].update(isthing="0"), r"categories\[0\]: isthing is '0', exp"),
        (
            lambda t: t["annotations"][1].update(segmentation=[[40, 1, 50, 1, 50, 9]]),
            r"annotations\[1\]: found a polygon at x 40..50.*outside",
        ),
        (lambda t: t["annotations"][2]["segmentation"].update(size=[2, 2]), r"\[1?2, 2\] pixels"),
        (lambda t: t["annotations"][2]["segmentation"].update(counts="ab"), "run lengths of"),
        (lambda t: t["annotations"].append(7), r"annotations\[5\]: image_id is None"),
        (lambda t: t["categories"][0].update(id=90), r"categories\[1\]: id 90 occurs twice"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, change: Any, message: str) -> None:
    content = tree()
    change(content)
    path = written(tmp_path / "a.json", content)
    with pytest.raises(DatasetError, match=message) as found:
        list(read(path))
    assert str(path) in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00", '{"images": ' + "[" * 200])
def test_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    for function in (class_names, lambda path: list(read(path))):
        with pytest.raises(DatasetError, match=r"a\.json: "):
            function(tmp_path / "a.json")
        with pytest.raises(DatasetError, match=r"b\.json: found FileNotFoundError"):
            function(tmp_path / "b.json")
