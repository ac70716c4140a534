"""`tagclip labels convert`: tables found, filled in and read, and what becomes of masks."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from detectron2.data import DatasetCatalog
from helpers.convert_tool import COLORS, TABLE, VALUES, coco, content, ids, run
from helpers.full_disk import largest_file
from helpers.paths import TOOLS
from helpers.tiny_run import load_tool
from helpers.toy_dataset import forget
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from tagclip.data import read_indices, read_label, register_folder_dataset
from tagclip.errors import ConfigError, DatasetError, VocabularyError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.panels import save_png


@pytest.mark.parametrize("workers", ["0", "2"])
def test_masks_become_labels_that_train(
    tool: ModuleType, masks: Path, tmp_path: Path, workers: str, capsys: pytest.CaptureFixture
) -> None:
    output, table = tmp_path / "labels", tmp_path / "classes.csv"
    words = [str(masks), "--classes", str(table), "--output", str(output), "--workers", workers]
    tool.main(tool.parse_args(words))
    assert "3 label files" in capsys.readouterr().out
    for number, name in enumerate(("a/0", "b/1", "a/2")):
        assert np.array_equal(read_label(output / f"{name}.png"), VALUES[ids(number)])
    index = json.loads((output / "index.json").read_text())
    assert index["classes"] == {"0": "sand", "1": "red thing"} and index["unknown"] == {}
    assert index["files"]["b/1.png"] == str(masks / "b" / "1.PNG") and len(index["files"]) == 3
    vocabulary = Vocabulary.from_json(output / "vocabulary.json")
    assert vocabulary.names == ["sand", "red thing"] and vocabulary.ignore_label == 255
    # Read as any dataset's labels.
    register_folder_dataset("converted", str(masks), str(output), output / "vocabulary.json")
    try:
        pairs = [
            (item["file_name"], item["sem_seg_file_name"])
            for item in DatasetCatalog.get("converted")
        ]
    finally:
        forget("converted")
    assert len(pairs) == 3 and all(label.startswith(str(output)) for _, label in pairs)


def test_masks_of_several_runs_of_segment_are_refused(
    tool: ModuleType, masks: Path, tmp_path: Path
) -> None:
    words = (masks, "--classes", tmp_path / "classes.csv", "--output", tmp_path / "labels")
    for name in ("one", "two"):
        save_png(masks / f"{name}.png", COLORS[ids(9)], words={0: name})
    with pytest.raises(DatasetError, match=r"one\.png, .*two\.png: found label files of runs of"):
        run(tool, *words)
    assert not (tmp_path / "labels").exists()
    (masks / "two.png").unlink()
    run(tool, *words)


def test_masks_of_segment_and_a_list_that_moves_its_words(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Such as one with a background in front; other words may be new names."""
    masks, table, output = (tmp_path / name for name in ("masks", "c.txt", "labels"))
    masks.mkdir()
    values = np.array([[0, 1, 1], [0, 0, 2]], np.uint8)
    save_png(masks / "a.png", values, words={0: "cat", 1: "dog", 2: "sky"})
    words = (masks, "--classes", table, "--output", output)
    for names in ("background\ncat\ndog\nsky\n", "dog\ncat\nsky\n", "Katze\nHimmel\nsky\ndog\n"):
        table.write_text(names)
        with pytest.raises(DatasetError, match=r"masks: found .* with other words, [01] = '.*'"):
            run(tool, *words)
        assert not output.exists()
    table.write_text("cat\nHund\nsky\n")
    run(tool, *words)
    assert "1 = 'dog' ('Hund' here); these are taken as new names" in capsys.readouterr().err
    assert np.array_equal(read_label(output / "a.png"), values)
    # Who says what each value becomes moves them as he wants.
    table.write_text("dog\ncat\nsky\n")
    (ids_table := tmp_path / "ids.csv").write_text("value,id\n0,1\n1,0\n2,2\n")
    run(tool, *words, "--ids", ids_table, "--overwrite")
    assert np.array_equal(read_label(output / "a.png"), np.array([1, 0, 2])[values])
    capsys.readouterr()
    table.write_text("Cat\ndog\nsky\ntree\n")
    run(tool, *words, "--overwrite")
    assert "words" not in capsys.readouterr().err


def test_the_printed_table_is_read_when_filled_in(
    tool: ModuleType, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(tool, masks, "--scan")
    found = capsys.readouterr()
    head, *rows = found.out.splitlines()
    assert head == "name,r,g,b,pixels,share" and len(rows) == 3
    counts = sum(np.bincount(ids(n).ravel()) for n in range(3))
    expected = {
        f"{','.join(map(str, c))},{n}" for c, n in zip(COLORS.tolist(), counts, strict=True)
    }
    assert {row[1:].rsplit(",", 1)[0] for row in rows} == expected
    (tmp_path / "found.csv").write_text(found.out)
    with pytest.raises(DatasetError, match=r"found\.csv, line 2: found no name"):
        run(tool, masks, "--classes", tmp_path / "found.csv", "--output", tmp_path / "o")
    names = {"0,0,0": "ignore", "194,178,128": "sand", "220,20,60": "red thing"}
    filled = [next(n for c, n in names.items() if row.startswith(f",{c},")) + row for row in rows]
    filled.sort(key=lambda row: row.startswith("red"))
    (tmp_path / "found.csv").write_text("\n".join([head, *filled]))
    run(tool, masks, "--classes", tmp_path / "found.csv", "--output", tmp_path / "o")
    assert np.array_equal(read_label(tmp_path / "o/b/1.png"), VALUES[ids(1)])
    capsys.readouterr()
    run(tool, masks, "--classes", tmp_path / "found.csv", "--scan")
    assert sorted(row.split(",")[0] for row in capsys.readouterr().out.splitlines()) == [
        "ignore",
        "name",
        "red thing",
        "sand",
    ]


def test_gray_values_are_scanned_too(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "m").mkdir()
    Image.fromarray(np.array([[0, 255, 7, 7]], np.uint8)).save(tmp_path / "m" / "x.png")
    run(tool, tmp_path / "m", "--scan")
    out = capsys.readouterr().out
    assert out == "name,id,pixels,share\n,0,1,25.0000%\n,7,2,50.0000%\n,255,1,25.0000%\n"
    lines = zip(("name", "crack", "rest", "ignore"), out.splitlines(), strict=True)
    table = "\n".join(name + line.removeprefix("name") for name, line in lines)
    (tmp_path / "m" / "class_dict.csv").write_text(table)
    # A class list beside the masks is found.
    run(tool, tmp_path / "m", "--output", tmp_path / "o")
    assert "class_dict.csv" in capsys.readouterr().err
    assert read_label(tmp_path / "o" / "x.png").tolist() == [[0, 255, 7, 7]]
    vocabulary = Vocabulary.from_json(tmp_path / "o" / "vocabulary.json")
    assert [(e.id, e.name) for e in vocabulary.classes] == [(0, "crack"), (7, "rest")]


def test_values_are_mapped(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    Image.fromarray(np.array([[0, 1, 255, 9]], np.uint8)).save(tmp_path / "m" / "x.png")
    (tmp_path / "c.csv").write_text("name,id\nrest,0\ncrack,1\n")
    (tmp_path / "i.csv").write_text("value,id\n0,0\n1,1\n255,1\n")
    words = [tmp_path / "m", "--classes", tmp_path / "c.csv", "--ids", tmp_path / "i.csv"]
    with pytest.raises(DatasetError, match=r"1 of 1 masks have .* list 'c' lacks: 9 \(1 pixels\)"):
        run(tool, *words, "--output", tmp_path / "o")
    run(tool, *words, "--output", tmp_path / "o", "--unknown", "ignore")
    assert read_label(tmp_path / "o" / "x.png").tolist() == [[0, 1, 1, 255]]
    assert json.loads((tmp_path / "o/index.json").read_text())["unknown"] == {"9": 1}
    (tmp_path / "i.csv").write_text("value,id\n0,3\n")
    with pytest.raises(
        DatasetError, match=r"found the id 3 for the value 0, expected one of c: 0, 1"
    ):
        run(tool, *words, "--output", tmp_path / "o")


def test_compressed_masks_of_two_values(tool: ModuleType, tmp_path: Path) -> None:
    square = np.zeros((32, 32), np.uint8)
    square[5:25, 5:25] = 255
    (tmp_path / "m").mkdir()
    Image.fromarray(square).save(tmp_path / "m" / "x.jpg", quality=50)
    run(tool, tmp_path / "m", "--threshold", 128, "--output", tmp_path / "o")
    assert np.array_equal(read_label(tmp_path / "o" / "x.png"), square // 255)
    (tmp_path / "two.csv").write_text("name,id\nrest,0\ncrack,255\n")
    with pytest.raises(DatasetError, match="with loss .* pass --threshold 128 if"):
        run(tool, tmp_path / "m", "--classes", tmp_path / "two.csv", "--output", tmp_path / "o2")
    assert Vocabulary.from_json(tmp_path / "o/vocabulary.json").names == [
        "background",
        "foreground",
    ]
    (tmp_path / "c.csv").write_text("name,id\ncrack,1\n")
    with pytest.raises(ConfigError, match="--threshold: found 1 classes in c, expected two"):
        run(
            tool,
            tmp_path / "m",
            "--threshold",
            9,
            "--classes",
            tmp_path / "c.csv",
            "--output",
            tmp_path,
        )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_threshold_does_not_look_under_transparency(
    tool: ModuleType, tmp_path: Path, dtype: type
) -> None:
    """A photo editor keeps the colours of what it cut out."""
    top = np.iinfo(dtype).max
    rgba = np.full((20, 30, 4), top, dtype)
    rgba[10:] = 0
    rgba[:, 20:, 3] = top // 2
    (tmp_path / "m").mkdir()
    cv2.imwrite(str(tmp_path / "m" / "a.png"), rgba)
    words = (tmp_path / "m", "--threshold", top // 2, "--output", tmp_path / "o")
    with pytest.raises(DatasetError, match=r"transparent \(400 pixels\); fill what is transp"):
        run(tool, *words)
    assert not (tmp_path / "o" / "a.png").exists()
    run(tool, *words, "--unknown", "ignore")
    expected = np.where(rgba[..., 3] < top, 255, rgba[..., 0] > 0)
    assert np.array_equal(read_label(tmp_path / "o" / "a.png"), expected)
    if dtype == np.uint8:
        # Gray ones are told apart from labels, whose ignore value is white.
        gray = Image.merge(
            "LA", [Image.fromarray(np.ascontiguousarray(rgba[..., c])) for c in (0, 3)]
        )
        gray.save(tmp_path / "m" / "a.png")
        with pytest.raises(DatasetError, match=r"a\.png: found gray .* paint what is .* two and"):
            run(tool, *words, "--overwrite")
    # Opaque, it is a mask as one of gray values.
    rgba[..., 3] = top
    cv2.imwrite(str(tmp_path / "m" / "a.png"), rgba)
    run(tool, *words, "--overwrite")
    assert np.array_equal(read_label(tmp_path / "o" / "a.png"), rgba[..., 0] > 0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, 1], "no pixel reaches it in 2 masks; the largest value is 1, so that 'foregr"),
        (
            [200, 255],
            "all pixels reach it in 2 masks; the smallest value is 200, so that 'ba",
        ),
        ([0, 128], ""),
    ],
)
def test_a_threshold_that_all_masks_lie_beyond(
    tool: ModuleType,
    tmp_path: Path,
    values: list[int],
    said: str,
    capsys: pytest.CaptureFixture,
) -> None:
    """One mask without a crack is in order; if all are, the threshold is wrong."""
    (tmp_path / "m").mkdir()
    mask = np.array([values * 3], np.uint8)
    Image.fromarray(mask).save(tmp_path / "m" / "x.png")
    Image.fromarray(np.full_like(mask, values[0])).save(tmp_path / "m" / "y.png")
    for overwrite in ([], ["--overwrite"]):
        words = ["--threshold", 128, "--output", tmp_path / "o", *overwrite]
        run(tool, tmp_path / "m", *words)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == bool(said)
        assert all(line.startswith(f"--threshold 128: {said}") for line in lines)
        assert np.array_equal(read_label(tmp_path / "o" / "x.png"), mask >= 128)


@pytest.mark.parametrize(
    ("values", "dtype", "threshold", "expected"),
    [
        # No data, background, crack.
        ([-9999, 0, 1], np.int32, 1, [0, 0, 1]),
        ([-9999, -9999, -1], np.int32, 1, [0, 0, 0]),
        ([0, 0, 1 << 60], np.int64, 1, [0, 0, 1]),
        ([-(1 << 62), 0, 1 << 62], np.int64, 1, [0, 0, 1]),
        ([0, 3, 70000], np.int32, 4, [0, 0, 1]),
    ],
)
def test_a_threshold_for_any_integers(
    tool: ModuleType,
    tmp_path: Path,
    values: list[int],
    dtype: type,
    threshold: int,
    expected: list[int],
) -> None:
    (tmp_path / "m").mkdir()
    mask = np.array([values] * 4, dtype)
    tifffile.imwrite(tmp_path / "m" / "x.tif", mask)
    run(tool, tmp_path / "m", "--threshold", threshold, "--output", tmp_path / "o")
    assert read_label(tmp_path / "o" / "x.png").tolist() == [expected] * 4


def test_a_photo_of_many_numbers_is_no_mask_of_two(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    noise = np.random.default_rng(0).integers(-(1 << 40), 1 << 20, (20, 20))
    tifffile.imwrite(tmp_path / "m" / "x.tif", noise)
    with pytest.raises(DatasetError, match=r"x\.tif: \d+% of the pixels are far from two values"):
        run(tool, tmp_path / "m", "--threshold", 1, "--output", tmp_path / "o")


def test_classes_of_a_registered_dataset(tool: ModuleType, masks: Path, tmp_path: Path) -> None:
    tree = {
        "format": 1,
        "name": "v",
        "labels": "colors",
        "ignore_color": [0, 0, 0],
        "classes": [
            {"id": 4, "name": "sand", "color": [194, 178, 128], "prompts": ["sand", "beach"]},
            {"id": 300, "name": "red thing", "color": [220, 20, 60]},
        ],
        "default_split": "s",
        "splits": {"s": {"unseen": ["sand"]}},
    }
    (tmp_path / "v.json").write_text(json.dumps(tree))
    register_folder_dataset("own", str(masks), str(masks), tmp_path / "v.json")
    try:
        run(tool, masks, "--dataset", "own", "--output", tmp_path / "o")
    finally:
        forget("own")
    assert np.array_equal(read_label(tmp_path / "o/b/1.png"), np.array([255, 4, 300])[ids(1)])
    assert json.loads((tmp_path / "o/vocabulary.json").read_text()) == {**tree, "labels": "ids"}


def test_classes_of_a_project_s_dataset(tool: ModuleType, tmp_path: Path) -> None:
    """Without a config that imports it."""
    (tmp_path / "m").mkdir()
    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(tmp_path / "m" / "x.png")
    words = [sys.executable, "-m", "tagclip", "labels", "convert", tmp_path / "m", "--workers", "0"]
    words += ["--dataset", "minibench_test", "--output", tmp_path / "o"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert read_label(tmp_path / "o" / "x.png").tolist() == [[0, 1, 255]]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("form", ["txt", "json"])
def test_a_class_list_without_colours_is_named(
    tool: ModuleType, tmp_path: Path, kind: type, form: str
) -> None:
    (tmp_path / "m").mkdir()
    Image.fromarray(np.array([[0, 1]], kind)).save(tmp_path / "m" / "x.png")
    rows = [{"id": 0, "name": "sand"}, {"id": 1, "name": "red thing"}]
    tree = {"format": 1, "name": "plain", "classes": rows}
    path = tmp_path / f"plain.{form}"
    path.write_text("sand\nred thing\n" if form == "txt" else json.dumps(tree))
    words = [tmp_path / "m", "--classes", path, "--output", tmp_path / "o", "--labels"]
    with pytest.raises(VocabularyError, match="found no colours in this class list, exp") as found:
        run(tool, *words, "colors")
    assert str(found.value).startswith(f"{path}: ") and "\n" not in str(found.value)
    assert str(found.value).endswith("or pass --labels ids if the pixels are ids")
    assert not (tmp_path / "o").exists()
    run(tool, *words, "ids")


def test_unknown_colours_name_the_nearest_and_leave_nothing_of_the_file(
    tool: ModuleType, masks: Path, tmp_path: Path
) -> None:
    (tmp_path / "classes.csv").write_text(TABLE.replace("220,20,60", "221,20,60"))
    Image.fromarray(COLORS[np.ones((20, 30), int)]).save(masks / "sand.png")
    output, count = tmp_path / "o", sum((ids(n) == 2).sum() for n in range(3))
    words = [masks, "--classes", tmp_path / "classes.csv", "--output", output]
    with pytest.raises(DatasetError, match=r"3 of 4 masks") as found:
        run(tool, *words)
    nearest = f"[220, 20, 60] ({count} pixels, nearest [221, 20, 60] red thing)"
    assert nearest in str(found.value) and "\n" not in str(found.value)
    assert list(content(output)) == ["sand.png"]
    # The remedy ends it, and keeps what was right.
    before = content(output)
    (tmp_path / "classes.csv").write_text(TABLE)
    run(tool, *words)
    after = content(output)
    assert after["sand.png"] == before["sand.png"] and len(after) == 6


@pytest.mark.parametrize("name", ["", "labels"])
def test_masks_are_never_written_over(
    tool: ModuleType, masks: Path, tmp_path: Path, name: str
) -> None:
    before = content(masks)
    words = [masks, "--classes", tmp_path / "classes.csv", "--output", masks / name, "--overwrite"]
    with pytest.raises(
        ConfigError, match="lies in .*masks, which is read, expected a folder beside"
    ):
        run(tool, *words)
    assert content(masks) == before


def test_two_masks_of_one_name(tool: ModuleType, masks: Path, tmp_path: Path) -> None:
    Image.fromarray(COLORS[ids(0)]).save(masks / "a" / "0.bmp")
    with pytest.raises(
        DatasetError, match=r"a/0\.bmp: found the same name|a/0\.PNG: found the same"
    ):
        run(tool, masks, "--classes", tmp_path / "classes.csv", "--output", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_no_classes_and_no_masks(tool: ModuleType, masks: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--classes: found no class list .* --scan > classes.csv, then"
    ):
        run(tool, masks, "--output", tmp_path / "o")
    (tmp_path / "empty").mkdir()
    words = ["--classes", tmp_path / "classes.csv", "--output", tmp_path / "o"]
    for folder, message in (("empty", "found no mask files"), ("none", "no such folder")):
        with pytest.raises(DatasetError, match=message):
            run(tool, tmp_path / folder, *words)


@pytest.mark.parametrize(
    "words",
    [
        ["m"],
        ["m", "--scan", "--output", "o"],
        ["m", "--output", "o", "--images", "i"],
        ["m", "--output", "o", "--unlabelled", "x"],
        ["m", "--from", "coco", "--scan"],
        ["m", "--from", "coco", "--output", "o", "--ids", "i"],
        ["m", "--from", "coco", "--output", "o", "--threshold", "1"],
        ["m", "--output", "o", "--ids", "i", "--threshold", "0"],
        ["m", "--output", "o", "--labels", "ids", "--threshold", "0"],
        ["m", "--output", "o", "--ids", "i", "--labels", "colors"],
        ["m", "--from", "coco", "--output", "o", "--labels", "ids"],
        ["m", "--output", "o", "--classes", "c", "--dataset", "d"],
        ["m", "--scan", "--threshold", "3"],
        ["m", "--scan", "--labels", "ids"],
        ["m", "--scan", "--ids", "i"],
        ["m", "--scan", "--unknown", "error"],
        ["m", "--scan", "--overwrite"],
        ["m", "--output", "o", "--workers", "-1"],
        ["m", "--output", "o", "--from", "paint"],
    ],
)
def test_options_that_contradict(tool: ModuleType, words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        tool.parse_args(words)


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_masks_of_which_nothing_has_a_class(
    tool: ModuleType, masks: Path, tmp_path: Path, overwrite: list[str]
) -> None:
    (tmp_path / "other.csv").write_text("name,r,g,b\nsky,1,2,3\n")
    words = [masks, "--output", tmp_path / "o", "--unknown", "ignore"]
    with pytest.raises(DatasetError, match="masks: found no pixel with a class in 3 masks, .*--sc"):
        run(tool, *words, "--classes", tmp_path / "other.csv", *overwrite)
    assert not list((tmp_path / "o").glob("*.json"))
    run(tool, *words, "--classes", tmp_path / "classes.csv", "--overwrite")
    assert np.array_equal(read_label(tmp_path / "o/a/0.png"), VALUES[ids(0)])


def test_a_folder_that_cannot_be_written(tool: ModuleType, masks: Path, tmp_path: Path) -> None:
    (tmp_path / "o").write_text("a file")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ConfigError, match="--output .*o: cannot be written"):
        run(tool, masks, "--classes", tmp_path / "classes.csv", "--output", tmp_path / "o")
    assert sorted(os.listdir(tmp_path)) == before


def test_the_commands_of_the_docs(
    tool: ModuleType,
    masks: Path,
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """On the smallest files that they need."""
    monkeypatch.chdir(tmp_path)
    for name in ("cvat/SegmentationClass", "colors", "ids", "cracks", "annotated", "yolo"):
        Path(name).mkdir(parents=True)
    for folder in ("cvat/SegmentationClass", "colors"):
        Image.fromarray(COLORS[ids(0)]).save(f"{folder}/x.png")
    names = {"background": (0, 0, 0), "sand": (194, 178, 128), "red": (220, 20, 60)}
    lines = (f"{name}:{','.join(map(str, color))}::" for name, color in names.items())
    Path("cvat/labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]))
    rows = enumerate(names.items())
    calls = [f"Label('{n}', {i}, {i}, 'x', 0, False, False, {c})," for i, (n, c) in rows]
    Path("labels.py").write_text("\n".join(["labels = [", *calls, "]"]))
    Image.fromarray(np.array([[0, 255]], np.uint8)).save("ids/x.png")
    Path("names.csv").write_text("name,id\nrest,0\ncrack,1\n")
    Path("values.csv").write_text("value,id\n0,0\n255,1\n")
    Image.new("L", (8, 8)).save("cracks/x.jpg")
    coco(tmp_path).rename("instances.json")
    square = {"label": "a", "shape_type": "rectangle", "points": [[1, 1], [3, 3]]}
    size = {"imageHeight": 8, "imageWidth": 8}
    Path("annotated/x.json").write_text(
        json.dumps({"imagePath": "x.jpg", "shapes": [square], **size})
    )
    for folder in ("images", "labels"):
        Path("yolo", folder).mkdir()
    Image.new("RGB", (8, 8)).save("yolo/images/x.jpg")
    Path("yolo/labels/x.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9")
    Path("yolo/data.yaml").write_text("names: [cat]")
    page = (repository / "docs" / "other_tools.md").read_text()
    sections = [
        page.split(f"\n### {title}\n")[1].split("\n##")[0]
        for title in ("Colour masks, other values, compressed masks", "COCO, labelme, YOLO")
    ]
    blocks = re.findall(r"```sh\n(.*?)```", "".join(sections), re.DOTALL)
    commands = [line.split(">")[0] for block in blocks for line in block.splitlines()]
    assert len(commands) == 9
    for command in commands:
        words = shlex.split(command, comments=True)
        assert words[:3] == ["tagclip", "labels", "convert"]
        run(tool, *words[3:])
    assert len(list(tmp_path.glob("labels*/index.json"))) == 8
    assert (read_label("labels_yolo/x.png") == 1).any()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_full_disk_is_one_line_and_leaves_whole_files(
    tool: ModuleType, masks: Path, tmp_path: Path, workers: str
) -> None:
    output = tmp_path / "o"
    words = [str(masks), "--classes", str(tmp_path / "classes.csv"), "--output", str(output)]
    words += ["--workers", workers]
    message = r"^{}.*cannot be written \({}\); free space or choose another [^\n]*$"
    with (
        largest_file(500),
        pytest.raises(DatasetError, match=message.format(output, "File too large")),
    ):
        tool.main(tool.parse_args(words))
    assert not any(path.is_file() for path in output.rglob("*"))
    (output / "index.json").mkdir()
    with pytest.raises(ConfigError, match=message.format("--output ", "Is a directory")):
        tool.main(tool.parse_args(words))
    (output / "index.json").rmdir()
    tool.main(tool.parse_args(words))
    assert len(content(output)) == 5


_POOL = [(0, 0, 0), (255, 255, 255), (1, 1, 1), (7, 7, 7), (200, 10, 30), (9, 99, 199)]


@st.composite
def _class_lists(draw: st.DrawFn) -> dict[str, Any]:
    ids = draw(
        st.lists(st.sampled_from([0, 1, 2, 7, 255, 300]), min_size=2, max_size=4, unique=True)
    )
    colors = draw(
        st.one_of(
            st.just([None] * 8),
            st.permutations(_POOL),
            st.lists(st.sampled_from([*_POOL, None]), min_size=8, max_size=8),
        )
    )
    classes = [
        {"id": i, "name": f"c{i}"} | ({"color": c} if c else {})
        for i, c in zip(ids[:-1], colors, strict=False)
    ]
    tree = {"format": 1, "name": "v", "ignore_label": ids[-1], "classes": classes}
    if draw(st.booleans()):
        rest = [c for c in _POOL if c not in colors[: len(classes)]]
        tree["ignore_color"] = draw(st.sampled_from(rest))
    return tree | draw(st.sampled_from([{}, {}, {"labels": "ids"}, {"labels": "colors"}]))


@st.composite
def _masks(draw: st.DrawFn, tree: dict[str, Any]) -> bytes:
    """A png of any kind whose pixels are ids or colours of the list, or nearly."""
    values = [c["id"] for c in tree["classes"]] + [tree["ignore_label"]]
    values += [0, 255, 7] * draw(st.booleans())
    colors = [c["color"] for c in tree["classes"] if "color" in c]
    colors = [*colors, tree["ignore_color"]] if "ignore_color" in tree else colors or _POOL[:2]
    colors = colors + _POOL[:4] * draw(st.booleans())
    some = st.lists(st.integers(0, 10**6), min_size=1, max_size=4)
    picks = np.resize(draw(some), (3, 4))
    kind = draw(st.sampled_from(["gray", "palette", "rgb", "rgba", "equal", "rgb 16", "equal 16"]))
    pixels = np.array(colors, np.uint8)[picks % len(colors)]
    grays = np.array(values, np.uint16)[picks % len(values)]
    file = io.BytesIO()
    if kind == "gray":
        dtype = np.uint16 if grays.max() > 255 or draw(st.booleans()) else np.uint8
        Image.fromarray(grays.astype(dtype)).save(file, "PNG")
    elif kind == "palette":
        picture = Image.fromarray(grays.astype(np.uint8))
        order = draw(st.integers(0, 10**6))
        table = np.resize(np.array(colors, np.uint8), (256 + order % 7, 3))[order % 7 :]
        picture.putpalette(table[: draw(st.sampled_from([3, 256]))].tobytes())
        picture.save(file, "PNG")
    elif kind in ("rgb", "rgba"):
        alpha = np.full((3, 4, 1), draw(st.sampled_from([255, 255, 254])), np.uint8)
        pixels = np.concatenate([pixels, alpha], axis=2) if kind == "rgba" else pixels
        Image.fromarray(pixels).save(file, "PNG")
    else:
        pixels = grays[..., None].repeat(3, axis=2) if kind.startswith("equal") else pixels
        if "16" not in kind:
            pixels = pixels.astype(np.uint8)
        elif kind == "rgb 16" or draw(st.booleans()):
            pixels = pixels.astype(np.uint16) * draw(st.sampled_from([1, 257]))
        file.write(cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]))[1].tobytes())
    return file.getvalue()


@given(st.data())
@settings(deadline=None, max_examples=80)
def test_a_mask_means_the_same_read_and_converted(data: st.DataObject) -> None:
    tree = data.draw(_class_lists())
    try:
        vocabulary = Vocabulary.from_text(json.dumps(tree), "", "v")
    except VocabularyError:
        assume(False)
    with tempfile.TemporaryDirectory() as folder:
        mask, list_ = Path(folder, "m", "a.png"), Path(folder, "v.json")
        mask.parent.mkdir()
        mask.write_bytes(data.draw(_masks(tree)))
        list_.write_text(json.dumps(tree))
        try:
            expected = read_indices(mask, vocabulary, (3, 4))
        except (DatasetError, VocabularyError):
            expected = None
        tool = load_tool(TOOLS / "convert_labels.py")
        try:
            run(tool, mask.parent, "--classes", list_, "--output", Path(folder, "o"))
        except (DatasetError, VocabularyError) as error:
            if "found no pixel with a class" in str(error):
                assert (expected == vocabulary.ignore_index).all()
            # Where both could be meant it asks; a reader goes by the values of a gray file.
            elif "pass --labels ids or --labels colors" not in str(error):
                assert expected is None
            return
        converted = Vocabulary.from_json(Path(folder, "o", "vocabulary.json"))
        found = read_indices(Path(folder, "o", "a.png"), converted, (3, 4))
        assert expected is not None and np.array_equal(found, expected)
