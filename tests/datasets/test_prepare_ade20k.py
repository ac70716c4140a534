"""ADE20K: 150 classes of the scene parsing challenge, 847 of the full data set."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from helpers.miniature_trees import (
    REPOSITORY,
    benchmarks_at,
    make_ade150,
    make_ade_full,
    read_png,
    run_script,
    script_error,
    snapshot,
    write_gray,
)
from helpers.toy_dataset import toy_config
from PIL import Image

from tagclip.data import ZeroShotDatasetMapper

SCRIPT = "prepare_ade20k"
SCENES = Path("ADEChallengeData2016")
FULL = Path("ADE20K_2021_17_01")
FEW = ("--only", "ade20k150_train", "ade20k150_val")
MANY = ("--only", "ade20k847_val")


def object_numbers() -> dict[int, str]:
    """Class name by object number, as committed."""
    path = REPOSITORY / "tagclip" / "data" / "datasets" / "label_maps" / "ade847.json"
    return {int(k): name for k, name in json.loads(path.read_text())["classes"].items()}


def names847() -> list[str]:
    path = REPOSITORY / "tagclip" / "data" / "datasets" / "vocabularies" / "ade847.json"
    return [entry["name"] for entry in json.loads(path.read_text())["classes"]]


def test_150_classes(tmp_path: Path) -> None:
    raw = make_ade150(tmp_path)
    run_script(SCRIPT, tmp_path, *FEW)
    for stem, label in raw.items():
        subset = "training" if "train" in stem else "validation"
        result = read_png(tmp_path / SCENES / "annotations_detectron2" / subset / f"{stem}.png")
        np.testing.assert_array_equal(result, np.where(label == 0, 255, label - 1))
    with benchmarks_at(tmp_path):
        setting = ("DATASETS.ZERO_SHOT.SETTING", "supervised", "INPUT.CROP.ENABLED", False)
        cfg = toy_config("DATASETS.TRAIN", ("ade20k150_train",), *setting)
        sample = ZeroShotDatasetMapper(cfg, is_train=True)(DatasetCatalog.get("ade20k150_train")[0])
    assert len(sample["sem_seg"].unique()) > 20


def test_labels_of_mask2former_are_taken_as_they_are(tmp_path: Path) -> None:
    """Value minus 1 with uint8 wrap-around."""
    raw = make_ade150(tmp_path)
    folder = tmp_path / SCENES / "annotations_detectron2" / "validation"
    for stem in ("ADE_val_00000001", "ADE_val_00000002"):
        write_gray(folder / f"{stem}.png", raw[stem].astype(np.uint8) - np.uint8(1))
    before = snapshot(folder)
    run_script(SCRIPT, tmp_path, "--only", "ade20k150_val")
    assert snapshot(folder) == before


def test_unconverted_labels_in_our_place_are_refused(tmp_path: Path) -> None:
    raw = make_ade150(tmp_path)
    folder = tmp_path / SCENES / "annotations_detectron2" / "validation"
    write_gray(folder / "ADE_val_00000001.png", raw["ADE_val_00000001"])
    message = script_error(SCRIPT, tmp_path, "--only", "ade20k150_val")
    assert "another converter wrote these labels with other ids" in message


@pytest.fixture
def full(tmp_path: Path) -> dict[str, np.ndarray]:
    numbers = [*object_numbers(), 0, 1, 3500, 6655]
    return make_ade_full(tmp_path, numbers)


def test_847_classes_of_reduced_images(tmp_path: Path, full: dict[str, np.ndarray]) -> None:
    before = snapshot(tmp_path)
    run_script(SCRIPT, tmp_path, *MANY)
    assert before.items() <= snapshot(tmp_path).items()
    names, number_of = names847(), object_numbers()
    table = np.full(6656, 65535)
    for number, name in number_of.items():
        table[number] = names.index(name)
    for stem, label in full.items():
        result = read_png(tmp_path / FULL / "annotations_detectron2/validation" / f"{stem}.tif")
        with Image.open(tmp_path / FULL / "images_detectron2/validation" / f"{stem}.jpg") as image:
            assert image.size == result.shape[::-1]
        expected = table[label].astype(np.uint16)
        if max(label.shape) > 512:
            # 540 x 600 becomes 512 x round(600 / 540 * 512).
            assert result.shape == (512, 569)
            expected = cv2.resize(expected, (569, 512), interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(result, expected)
    with benchmarks_at(tmp_path):
        setting = ("DATASETS.ZERO_SHOT.SETTING", "supervised", "INPUT.CROP.ENABLED", False)
        cfg = toy_config("DATASETS.TRAIN", ("ade20k847_val",), *setting)
        sample = ZeroShotDatasetMapper(cfg, is_train=True)(DatasetCatalog.get("ade20k847_val")[0])
    assert sample["sem_seg"].max() == 847 and len(sample["sem_seg"].unique()) > 20


def test_full_data_twice_and_anew(tmp_path: Path, full: dict[str, np.ndarray]) -> None:
    run_script(SCRIPT, tmp_path, *MANY)
    before = snapshot(tmp_path)
    run_script(SCRIPT, tmp_path, *MANY)
    assert snapshot(tmp_path) == before
    run_script(SCRIPT, tmp_path, *MANY, "--overwrite")
    assert snapshot(tmp_path) == before


def test_overwriting_with_a_bad_label_leaves_the_reduced_images(
    tmp_path: Path, full: dict[str, np.ndarray]
) -> None:
    run_script(SCRIPT, tmp_path, *MANY)
    (bad,) = (tmp_path / FULL).rglob("ADE_val_00000002_seg.png")
    write_gray(bad, np.zeros((6, 6)))
    before = snapshot(tmp_path)
    message = script_error(SCRIPT, tmp_path, *MANY, "--overwrite")
    assert f"{bad}: label is 6x6 (width x height), its image is 24x18" in message
    assert snapshot(tmp_path) == before


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path, full: dict[str, np.ndarray]) -> None:
    run_script(SCRIPT, tmp_path, *MANY)
    before = snapshot(tmp_path)
    for folder, name in (("images", "jpg"), ("annotations", "tif")):
        path = tmp_path / FULL / f"{folder}_detectron2" / "validation"
        (path / f".ADE_val_00000001.{name}.0123abcd.tmp").write_bytes(b"half")
    run_script(SCRIPT, tmp_path, *MANY)
    assert snapshot(tmp_path) == before


def test_missing_trees(tmp_path: Path) -> None:
    assert "no folder with ADEChallengeData2016" in script_error(SCRIPT, tmp_path)
    assert "no folder with the full ADE20K" in script_error(SCRIPT, tmp_path, *MANY)
