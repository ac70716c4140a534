"""tools/read_bulk.py: lists, label maps and the figure, against the rows."""

from __future__ import annotations

import csv
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers.full_disk import largest_file
from helpers.labelled_images import NAMES, label_maps, odd_vocabulary
from helpers.segment_folders import label_outputs, write_segment_folder
from helpers.tiny_run import exit_of, load_tool
from helpers.toy_dataset import forget
from helpers.toy_evaluation import Toy
from PIL import Image

from tagclip.data.label_io import read_label
from tagclip.errors import TagCLIPError
from tagclip.evaluation.segment_rows import failed_row, prediction_row

WORDS = odd_vocabulary()
MAPS = {f"b/{number}.jpg": labels for number, labels in enumerate(label_maps())}
# Of each image, the share with w < 0.5: no order of the names.
UNSEEN = dict(zip(MAPS, (0.2, 0.9, 0.1, 0.9, 0.5), strict=True))


@pytest.fixture
def tool(repository: Path) -> ModuleType:
    return load_tool(repository / "tools" / "read_bulk.py")


def rows(token: bool = True) -> list[dict[str, Any]]:
    found = []
    for image_id, labels in MAPS.items():
        trusty = np.arange(labels.size).reshape(labels.shape) / labels.size
        trusty = (trusty >= UNSEEN[image_id]).astype(np.float32)
        outputs = label_outputs(labels, trusty if token else None)
        found.append(prediction_row(image_id, outputs, WORDS, labels=False))
    return [*found, failed_row("b/broken.jpg", "b/broken.jpg: no image", labels=False)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = rows()
    return write_segment_folder(tmp_path / "out", [found[:2], found[2:]], WORDS, "webdataset")


def read(tool: ModuleType, *words: object) -> None:
    tool.main(tool.parse_args(list(map(str, words))))


def listed(tool: ModuleType, folder: Path, *words: object) -> list[dict[str, str]]:
    path = folder.with_name("list.csv")
    read(tool, folder, "--csv", path, *words)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def ids(found: list[dict[str, str]]) -> list[str]:
    return [row["image_id"] for row in found]


def test_lists(tool: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = listed(tool, folder)
    assert ids(everything) == list(MAPS)
    for row, expected in zip(everything, rows(), strict=False):
        assert float(row["unseen"]) == pytest.approx(expected["unseen"], abs=1e-4)
        shares = {s["name"]: round(s["share"], 4) for s in expected["segments"]}
        assert json.loads(row["classes"]) == shares
    path = folder.with_name("list.csv")
    assert capsys.readouterr().out.endswith(f"\n5 images\n5 images listed: {path}\n")
    order = sorted(MAPS, key=lambda i: (-round(next(r for r in rows() if r["image_id"] == i)
                                                ["unseen"], 4), i))  # fmt: skip
    assert ids(listed(tool, folder, "--sort", "unseen")) == order
    assert ids(listed(tool, folder, "--sort", "unseen", "--limit", 2)) == order[:2]
    assert "5 images, 2 of them above" in capsys.readouterr().out
    tool._SHOWN = 2
    for words in ((), ("--sort", "unseen")):
        read(tool, folder, *words)
        assert capsys.readouterr().out.endswith("\n5 images, 2 of them above\n")
        assert len(listed(tool, folder, *words)) == 5
        capsys.readouterr()
    assert listed(tool, folder, "--errors") == [
        {**dict.fromkeys(everything[0], ""), "image_id": "b/broken.jpg",
         "classes": "{}", "error": "b/broken.jpg: no image"}
    ]  # fmt: skip
    assert "b/broken.jpg: no image\n1 image\n1 image listed: " in capsys.readouterr().out


@pytest.mark.parametrize("above", [0, 0.2, 0.3])
def test_images_with_a_class(tool: ModuleType, folder: Path, above: float) -> None:
    for k, name in enumerate(NAMES):
        expected = [i for i, labels in MAPS.items() if (labels == k).mean() > above]
        assert ids(listed(tool, folder, "--class", name, "--above", above)) == expected


def test_label_maps_are_files_that_can_be_read(tool: ModuleType, folder: Path) -> None:
    """By us, with the list of classes beside them."""
    labels = folder.with_name("labels")
    read(tool, folder, "--labels-to", labels)
    assert (labels / "vocabulary.json").read_bytes() == (folder / "vocabulary.json").read_bytes()
    lut = np.array([*(entry.id for entry in WORDS.classes), WORDS.ignore_label])
    for image_id, expected in MAPS.items():
        found = read_label(labels / image_id.replace(".jpg", ".png"), WORDS)
        assert np.array_equal(found, lut[expected])
    assert len(list(labels.rglob("*.png"))) == len(MAPS)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "b/a.jpg"], ["a.png", "b/a.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png.png"]),
        (["/data/a.jpg", "x.tar/a.jpg", "x.parquet/17"],
         ["data/a.png", "x.tar/a.png", "x.parquet/17.png"]),
        (["a.jpg", "a.png", "a.jpg.tif"], "several images would be a.jpg.png"),
        (["a.jpg", "a.png/b.jpg"], "a.png would be a file and a folder"),
        (["../a.jpg"], "found the image '../a.jpg', expected a path without"),
        (["x/../../a.jpg"], "expected a path without"),
        ([""], "found the image ''"),
    ],
)  # fmt: skip
def test_names_of_label_maps(tool: ModuleType, names: list[str], expected: Any) -> None:
    if isinstance(expected, str):
        with pytest.raises(TagCLIPError, match=expected):
            tool.label_files(names)
    else:
        assert list(map(str, tool.label_files(names).values())) == expected


def mistake(tool: ModuleType, *words: object) -> str:
    with pytest.raises(TagCLIPError) as caught:
        read(tool, *words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_are_one_line(
    tool: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "found no manifest.json, expected a folder" in mistake(tool, tmp_path)
    found = mistake(tool, folder, "--class", "cta")
    assert found.startswith("--class: found 'cta'; did you mean cat?")
    plain = write_segment_folder(tmp_path / "plain", [rows(token=False)], WORDS, "webdataset")
    assert "--sort unseen: found no image with it" in mistake(tool, plain, "--sort", "unseen")
    (tmp_path / "file").touch()
    assert "cannot be written" in mistake(tool, folder, "--csv", tmp_path / "file/x.csv")
    with largest_file(10):
        assert "cannot be written" in mistake(tool, folder, "--labels-to", tmp_path / "labels")
    for file in (folder / "segments").iterdir():
        file.unlink()
    found = mistake(tool, folder)
    assert found.endswith("found no finished shard, expected one; run tagclip bulk again")


@pytest.mark.parametrize(
    "words",
    ["--csv {}/manifest.json", "--csv {}/segments/a.csv", "--csv {}/segments/shard-000000.tar",
     "--labels-to {}", "--labels-to {}/segments", "--labels-to {}/../out/shards/a",
     "--figure {}/summary.html --dataset a"],
)  # fmt: skip
def test_files_of_the_run_are_no_output(tool: ModuleType, folder: Path, words: str) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert "found what tagclip bulk wrote" in mistake(tool, folder, *words.format(folder).split())
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    read(tool, folder, "--csv", folder / "list.csv")


def test_label_maps_replace_nothing_but_label_maps(
    tool: ModuleType, folder: Path, tmp_path: Path
) -> None:
    """The folder of the images is taken for a place, and one with maps of other classes."""
    photo = tmp_path / "photos" / "b" / "3.png"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"photo")
    found = mistake(tool, folder, "--labels-to", tmp_path / "photos")
    assert "photos: found b/3.png, which would be replaced" in found
    assert [path for path in (tmp_path / "photos").rglob("*") if path.is_file()] == [photo]
    assert photo.read_bytes() == b"photo"
    labels = tmp_path / "labels"
    read(tool, folder, "--labels-to", labels)
    before = {path: path.read_bytes() for path in labels.rglob("*") if path.is_file()}
    (labels / "b" / "3.png").write_bytes(b"half")
    read(tool, folder, "--labels-to", labels)
    assert {p: p.read_bytes() for p in labels.rglob("*") if p.is_file()} == before
    (labels / "vocabulary.json").write_text("{}")
    found = mistake(tool, folder, "--labels-to", labels)
    assert "labels: found vocabulary.json, which would be replaced" in found


@pytest.mark.parametrize(
    "words",
    ["--above 0.1", "--above 5 --class a", "--limit 0", "--errors --sort id", "--figure a.png",
     "--dataset a", "--sort size", "--split a", "--truth-above 0.1",
     "--figure a.png --dataset a --csv a.csv", "--figure a.png --dataset a --sort id"],
)  # fmt: skip
def test_options_that_do_not_fit(tool: ModuleType, words: str) -> None:
    assert exit_of(tool.parse_args, ["out", *words.split()]) == 2


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    name = f"bulk_{uuid.uuid4().hex}"
    yield Toy(tmp_path, name)
    forget(name)


def test_what_the_orders_find(
    tool: ModuleType, toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    """The middle image has no unseen class; one order finds the others, one does not."""
    path = toy.samples[1]["sem_seg_file_name"]
    Image.fromarray(np.full(toy.labels[1].shape, 7, np.uint8)).save(path)
    found = []
    for i, (unseen, score) in enumerate(((0.5, 0.4), (0.1, 0.1), (0.9, 0.9))):
        size = toy.labels[i].shape
        outputs = label_outputs(np.zeros(size, np.int16), np.zeros(size, np.float32))
        outputs["sem_seg_scores"] = torch.full(size, score)
        row = prediction_row(f"{i}.png", outputs, toy.vocabulary, labels=False)
        found.append({**row, "unseen": unseen})
    folder = write_segment_folder(toy.folder / "out", [found], toy.vocabulary, "webdataset")
    figure = toy.folder / "gain.png"
    words = (folder, "--dataset", toy.name, "--figure", figure)
    tool._FIRST = (34, 67)
    read(tool, *words)
    out = capsys.readouterr().out
    assert "split zs: 2 of 3 images have unseen classes" in out
    table = [line.split() for line in out.splitlines() if line[:1].isdigit()]
    assert table == [
        ["34", "%", "1", "1", "0", "0.7", "+-", "0.5", "1"],
        ["67", "%", "2", "2", "1", "1.3", "+-", "0.5", "2"],
    ]
    with Image.open(figure) as picture:
        assert picture.format == "PNG"
    assert "0 of 3 images" in mistake(tool, *words, "--truth-above", 0.99)
    assert "is not registered" in mistake(tool, folder, "--figure", figure, "--dataset", "nothing")
