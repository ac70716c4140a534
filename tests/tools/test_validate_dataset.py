"""Validation of a dataset: every fault is found, named and counted; a good one is clean."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile
from detectron2.data import DatasetCatalog
from helpers.faulty_dataset import (
    HEIGHT,
    NAMES,
    WIDTH,
    make_dataset,
    random_label,
    set_orientation,
    spoil,
)
from helpers.tiny_run import load_tool
from helpers.toy_dataset import forget, vocabulary_tree, write_json
from PIL import Image

from tagclip.data import register_folder_dataset, register_zero_shot_sem_seg
from tagclip.data.datasets.walk import map_files
from tagclip.data.validation import scan as validation
from tagclip.data.validation.scan import Sample
from tagclip.errors import ConfigError, DatasetError, VocabularyError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.panels import save_png


@pytest.fixture(autouse=True)
def _clean_catalogs() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    forget(*(set(DatasetCatalog.list()) - before))


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    """tools/validate_dataset.py."""
    return load_tool(repository / "tools" / "validate_dataset.py")


def _validate(tool: ModuleType, output: Path, *words: str) -> tuple[int, dict[str, Any]]:
    args = tool.parse_args([*words, "--output", str(output), "--workers", "0"])
    code = tool.main(args)
    return code, {path.parent.name: json.loads(path.read_text()) for path in output.rglob("*.json")}


def _kinds(report: dict[str, Any]) -> dict[str, int]:
    return {problem["kind"]: problem["count"] for problem in report["problems"]}


def test_every_fault_is_named_and_the_scan_goes_on(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_dataset(tmp_path / "toy", 18)
    faults = spoil(folder)
    code, reports = _validate(tool, tmp_path / "out", "toy")
    report, printed = reports["toy"], capsys.readouterr().out
    assert code == 1 and not report["clean"]
    kinds = _kinds(report)
    assert kinds.pop("diagnosis") == 0
    assert kinds == dict.fromkeys(faults, 1)
    by_kind = {problem["kind"]: problem for problem in report["problems"]}
    for kind, (path, text) in faults.items():
        (example,) = by_kind[kind]["examples"]
        assert example.startswith(str(path)) and text in example
        assert example in printed
    # Problems come first, and each says what to do.
    flags = [problem["is_problem"] for problem in report["problems"]]
    assert flags == sorted(flags, reverse=True)
    assert all(problem["advice"] for problem in report["problems"] if problem["is_problem"])
    assert report["images"] == 18 - 2 and report["labels"] == 18 - 3


def test_swapped_sides_mention_the_exif_tag(tool: ModuleType, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "toy", 3)
    set_orientation(folder / "images" / "001.png", 8)
    code, reports = _validate(tool, tmp_path / "out", "toy")
    (problem,) = reports["toy"]["problems"]
    assert code == 1 and problem["kind"] == "size_swapped"
    assert problem["examples"][0].endswith("label 16x12, image 12x16, EXIF orientation 8")
    assert "EXIF" in problem["advice"]


def test_counts_equal_those_of_numpy(tool: ModuleType, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "toy", 9)
    # A palette and a 16-bit file count like any other.
    palette = Image.fromarray(random_label(3))
    palette.putpalette(list(range(256)) * 3)
    palette.save(folder / "labels" / "003.png")
    Image.fromarray(random_label(4).astype(np.uint16)).save(folder / "labels" / "004.png")
    code, reports = _validate(tool, tmp_path / "out", "toy")
    report = reports["toy"]
    labels = np.stack([random_label(index) for index in range(9)])
    assert code == 0 and report["clean"] and report["problems"] == []
    for entry in report["classes"]:
        hits = labels == entry["id"]
        assert entry["name"] == NAMES[entry["id"]]
        assert entry["seen"] == (entry["name"] != "dog")
        assert entry["pixels"] == hits.sum()
        assert entry["images"] == hits.any(axis=(1, 2)).sum()
    ignored = labels == 255
    assert report["ignored"] == {"value": 255, "pixels": ignored.sum(), "images": 9}
    shares = {
        "seen": np.isin(labels, [0, 2, 3]).mean(),
        "unseen": (labels == 1).mean(),
        "ignored": ignored.mean(),
        "unknown": 0.0,
    }
    assert report["shares"] == pytest.approx(shares)
    assert report["label_modes"] == {"I;16": 1, "L": 7, "P": 1}
    assert report["image_sizes"]["most_frequent"] == [WIDTH, HEIGHT]


def test_result_does_not_depend_on_workers(tool: ModuleType, tmp_path: Path) -> None:
    spoil(make_dataset(tmp_path / "toy", 40))
    texts = []
    for workers in ("0", "2"):
        output = tmp_path / workers
        tool.main(tool.parse_args(["toy", "--output", str(output), "--workers", workers]))
        texts.append([(output / "toy" / n).read_bytes() for n in ("report.json", "histogram.png")])
    assert texts[0] == texts[1]


def test_dead_worker_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # Forked workers run what the test put there.
    monkeypatch.setattr(validation, "read_image", lambda *_, **__: os._exit(7))
    samples = [Sample("a", "a.jpg", "a.png")] * 4
    with pytest.raises(DatasetError, match="toy: a worker process died") as caught:
        read = partial(validation.scan_sample, vocabulary=Vocabulary.from_names(["a"]))
        list(map_files(read, samples, "toy", processes=2))
    assert "\n" not in str(caught.value)


def test_images_of_two_datasets_are_compared(tool: ModuleType, tmp_path: Path) -> None:
    train, val = (
        make_dataset(tmp_path / "a", 8, "toy_train"),
        make_dataset(tmp_path / "b", 5, "toy_val", 100),
    )
    code, reports = _validate(tool, tmp_path / "clean", "toy_train", "toy_val")
    assert code == 0
    assert _kinds(reports["toy_train"]) == {} and _kinds(reports["toy_val"]) == {"same_name": 5}
    # The same pixels in another file.
    with Image.open(train / "images" / "006.png") as image:
        image.save(val / "images" / "002.png", compress_level=1)
    code, reports = _validate(tool, tmp_path / "leak", "toy_train", "toy_val")
    assert code == 1
    assert _kinds(reports["toy_val"]) == {"leak": 1, "same_name": 5}
    leak = reports["toy_val"]["problems"][0]
    assert leak["title"] == "images with the same pixels as in toy_train"
    assert leak["examples"] == [f"{val / 'images' / '002.png'}: as {train / 'images' / '006.png'}"]


def test_a_dataset_that_is_trained_and_tested_on(tool: ModuleType, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", 3, "toy_train")
    config = tmp_path / "toy.yaml"
    config.write_text("DATASETS: {TRAIN: [toy_train], TEST: [toy_train]}\n")
    code, reports = _validate(tool, tmp_path / "out", "--config-file", str(config))
    assert code == 1 and _kinds(reports["toy_train"]) == {"leak": 3}


def test_config_names_datasets_and_split(tool: ModuleType, tmp_path: Path) -> None:
    train = make_dataset(tmp_path / "a", 3, "toy_train")
    make_dataset(tmp_path / "b", 2, "toy_val", 100)
    tree = vocabulary_tree(NAMES, ["dog"])
    tree["splits"]["other"] = {"unseen": ["sky", "cat"]}
    for folder in "ab":
        write_json(tmp_path / folder / "toy.json", tree)
    # Images that training datasets share are no matter; the test set is compared with each.
    shutil.copytree(train / "images", tmp_path / "c" / "images")
    shutil.copytree(train / "labels", tmp_path / "c" / "labels")
    json_path = train / "toy.json"
    register_folder_dataset(
        "toy_more", tmp_path / "c" / "images", tmp_path / "c" / "labels", json_path
    )
    config = tmp_path / "toy.yaml"
    config.write_text(
        "DATASETS:\n  TRAIN: ('toy_train', 'toy_more')\n  TEST: ('toy_val',)\n"
        "  ZERO_SHOT: {SPLIT: other}\n"
    )
    code, reports = _validate(tool, tmp_path / "out", "--config-file", str(config))
    assert code == 0 and set(reports) == {"toy_train", "toy_more", "toy_val"}
    unseen = [entry["name"] for entry in reports["toy_val"]["classes"] if not entry["seen"]]
    assert unseen == ["cat", "sky"]
    words = ["--config-file", str(config), "--split", "zs"]
    _, reports = _validate(tool, tmp_path / "zs", *words)
    assert reports["toy_val"]["split"] == "zs"


def test_remedy_is_the_prepare_command(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_dataset(tmp_path / "toy", 4, "unused")
    (folder / "labels" / "002.png").unlink()
    for index in (0, 1):
        Image.fromarray(random_label(index) // 50 * 50).save(folder / "labels" / f"{index:03d}.png")
    register_zero_shot_sem_seg(
        "toy",
        folder / "images",
        folder / "labels",
        folder / "toy.json",
        image_ext="png",
        prepare_command="python datasets/prepare_toy.py",
    )
    code, reports = _validate(tool, tmp_path / "out", "toy")
    advice = {problem["kind"]: problem["advice"] for problem in reports["toy"]["problems"]}
    assert code == 1
    assert advice["diagnosis"].endswith("run: python datasets/prepare_toy.py")
    assert advice["unknown"] == "do as said above of all files"
    assert advice["lonely_image"].endswith("; or run: python datasets/prepare_toy.py")
    assert "run: python datasets/prepare_toy.py\n" in capsys.readouterr().out


def test_labels_named_by_mmsegmentation(tool: ModuleType, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "toy", 3)
    for path in list((folder / "labels").iterdir()):
        path.rename(path.with_name(f"{path.stem}_labelTrainIds.png"))
    code, reports = _validate(tool, tmp_path / "out", "toy")
    assert code == 1
    # One line mends all: no file is to be added or left out.
    assert _kinds(reports["toy"]) == {"refused": 1}
    (example,) = reports["toy"]["problems"][0]["examples"]
    assert example.endswith("their names differ by a suffix: write label_suffix: _labelTrainIds")
    folders = (folder / "images", folder / "labels", folder / "toy.json")
    register_folder_dataset("own", *folders, label_suffix="_labelTrainIds")
    register_zero_shot_sem_seg(
        "prepared", *folders, image_ext="png", prepare_command="python datasets/prepare_toy.py"
    )
    assert _validate(tool, tmp_path / "own", "own")[0] == 0
    code, reports = _validate(tool, tmp_path / "prepared", "prepared")
    assert code == 1 and _kinds(reports["prepared"]) == {
        "naming": 3,
        "lonely_image": 3,
        "lonely_label": 3,
    }


def test_what_is_missing_ends_in_one_line(tool: ModuleType, tmp_path: Path) -> None:
    make_dataset(tmp_path / "toy", 1)
    register_folder_dataset(
        "nowhere", tmp_path / "no", tmp_path / "no", tmp_path / "toy" / "toy.json"
    )
    for error, words in (
        (DatasetError, ["no_such_dataset"]),
        (DatasetError, ["nowhere"]),
        (VocabularyError, ["toy", "--split", "no_such_split"]),
        (ConfigError, ["--config-file", str(tmp_path / "no.yaml")]),
    ):
        with pytest.raises(error) as caught:
            _validate(tool, tmp_path / "out", *words)
        assert "\n" not in str(caught.value)
    for words in ([], ["toy", "--config-file", "x"], ["toy", "--workers", "-1"]):
        with pytest.raises(SystemExit) as ended:
            tool.parse_args(words)
        assert ended.value.code == 2


def test_exit_code_reaches_the_shell(tool: ModuleType, tmp_path: Path) -> None:
    make_dataset(tmp_path / "toy", 2)
    args = tool.parse_args(["toy", "--output", str(tmp_path / "out"), "--workers", "0"])
    with pytest.raises(SystemExit) as ended:
        tool.run(args)
    assert ended.value.code == 0
    (tmp_path / "toy" / "images" / "000.png").write_text("<html>")
    with pytest.raises(SystemExit) as ended:
        tool.run(args)
    assert ended.value.code == 1


def test_label_files_that_only_opencv_reads(tool: ModuleType, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "toy", 2)
    for index in range(2):
        (folder / "labels" / f"{index:03d}.png").unlink()
        values = random_label(index).astype(np.int64)
        tifffile.imwrite(folder / "labels" / f"{index:03d}.tif", values)
    forget("toy")
    register_folder_dataset("toy", folder / "images", folder / "labels", folder / "toy.json")
    code, reports = _validate(tool, tmp_path / "out", "toy")
    labels = np.stack([random_label(index) for index in range(2)])
    assert code == 0 and reports["toy"]["labels"] == 2
    assert [entry["pixels"] for entry in reports["toy"]["classes"]] == [
        (labels == entry["id"]).sum() for entry in reports["toy"]["classes"]
    ]
    assert reports["toy"]["label_modes"] == {"TIFF of 1 band of 64-bit signed integer values": 2}


def test_label_files_that_segment_made_with_other_words(tool: ModuleType, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "toy", 4)
    names = Vocabulary.from_metadata("toy").value_names
    (value, name), (_, other), *_ = names.items()
    paths = sorted((folder / "labels").iterdir())

    def found(words: dict[int, str], kind: str) -> tuple[int, list[dict[str, Any]]]:
        for path, said in zip(paths, (words, names, {}, None), strict=True):
            save_png(path, Image.open(path), words=said)
        code, reports = _validate(tool, tmp_path / "out", "toy")
        return code, [each for each in reports["toy"]["problems"] if each["kind"] == kind]

    # Maybe another word for the same: to look at. One of another value: never.
    for word, kind, is_problem in ((f"my {name}", "other_words", 0), (other, "moved_words", 1)):
        code, (entry,) = found({value: word}, kind)
        assert code == is_problem and entry["count"] == 1
        assert entry["examples"] == [f"{paths[0]}: {value} = {word!r} ({name!r} here)"]
    for kind in ("other_words", "moved_words"):
        assert found({value: name}, kind) == (0, [])


def test_all_pixels_ignored(tool: ModuleType, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "toy", 2)
    for path in (folder / "labels").iterdir():
        Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(path)
    code, reports = _validate(tool, tmp_path / "out", "toy")
    assert code == 1 and reports["toy"]["shares"]["ignored"] == 1
    assert (tmp_path / "out" / "toy" / "contact_sheet.png").exists()


def test_pictures(tool: ModuleType, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "toy", 5)
    (folder / "images" / "002.png").write_text("<html>")
    gray = np.full((HEIGHT, WIDTH, 3), 100, dtype=np.uint8)
    Image.fromarray(gray).save(folder / "images" / "000.png")
    # Left half dog, right half sky.
    halves = np.repeat([[1, 3]], WIDTH // 2, axis=1).repeat(HEIGHT, axis=0).astype(np.uint8)
    Image.fromarray(halves).save(folder / "labels" / "000.png")
    _validate(tool, tmp_path / "out", "toy")
    with Image.open(tmp_path / "out" / "toy" / "contact_sheet.png") as sheet:
        # Four tiles in one row, names and legend around them.
        assert sheet.width >= 4 * 320 and 240 < sheet.height < 450
        pixels = np.asarray(sheet.convert("RGB"))
    colors = Vocabulary.from_json(folder / "toy.json").colors
    for k in (1, 3):
        # Image and label in equal parts, on most of its half.
        hits = (np.abs(pixels - (100 + colors[k].astype(float)) / 2) <= 1).all(axis=2)
        assert 0.7 * 160 * 240 < hits.sum() <= 160 * 240
    with Image.open(tmp_path / "out" / "toy" / "histogram.png") as histogram:
        shades = set(histogram.convert("RGB").get_flattened_data())
    # Bars of seen and unseen classes, and of ignored pixels.
    assert {(0, 114, 178), (213, 94, 0), (153, 153, 153)} <= shades


def test_no_picture_without_a_pair(tool: ModuleType, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "toy", 1)
    (folder / "labels" / "000.png").write_bytes(b"")
    code, reports = _validate(tool, tmp_path / "out", "toy")
    assert code == 1 and reports["toy"]["shares"] == {}
    names = {path.name for path in (tmp_path / "out" / "toy").iterdir()}
    assert names == {"report.json", "histogram.png"}


def test_an_earlier_picture_goes_where_there_is_none(tool: ModuleType, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "toy", 1)
    _validate(tool, tmp_path / "out", "toy")
    assert (tmp_path / "out" / "toy" / "contact_sheet.png").is_file()
    (folder / "labels" / "000.png").write_bytes(b"")
    _validate(tool, tmp_path / "out", "toy")
    names = {path.name for path in (tmp_path / "out" / "toy").iterdir()}
    assert names == {"report.json", "histogram.png"}


@pytest.mark.parametrize("place", ["out", "out/toy"])
def test_what_cannot_be_written_is_said_before_anything_is_read(
    place: str, tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "toy", 1)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("no folder")
    monkeypatch.setattr(tool, "scan", None)
    with pytest.raises(ConfigError, match="--output .*/out/toy: cannot be written ") as caught:
        _validate(tool, tmp_path / "out", "toy")
    assert "\n" not in str(caught.value)


def test_keys_beside_names_act_or_are_refused(tool: ModuleType, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "toy", 2)
    tree = vocabulary_tree(NAMES, ["dog"])
    tree["splits"]["other"] = {"unseen": ["sky", "cat"]}
    write_json(folder / "toy.json", tree)
    key = "DATASETS.ZERO_SHOT.SPLIT"
    for words in ([key, "other"], ["--split", "other", key, "other"], ["--split", "other"]):
        _, reports = _validate(tool, tmp_path / "out", "toy", *words)
        assert reports["toy"]["split"] == "other"
    for error, found, words in (
        (VocabularyError, "no_such_split", [key, "no_such_split"]),
        (ConfigError, f"{key}: found 'other' and --split zs,", [key, "other", "--split", "zs"]),
        (ConfigError, f"{key}: found '' and --split zs,", [key, "", "--split", "zs"]),
        (ConfigError, "DATASETS.TRAIN: found beside the names", ["DATASETS.TRAIN", "('toy',)"]),
        (ConfigError, "DATASETS.TEST: found beside the names", ["DATASETS.TEST", "()"]),
    ):
        with pytest.raises(error, match=re.escape(found)) as caught:
            _validate(tool, tmp_path / "out", "toy", *words)
        assert "\n" not in str(caught.value)
