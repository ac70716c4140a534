"""VOC 2012 and SBD."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from helpers.miniature_trees import (
    SIZE,
    Labels,
    benchmarks_at,
    make_voc,
    random_label,
    read_png,
    run_script,
    script,
    script_error,
    snapshot,
    write_gray,
    write_list,
)
from helpers.toy_dataset import toy_config
from scipy.io import savemat

from tagclip.data import ZeroShotDatasetMapper

SCRIPT = "prepare_voc"


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Labels]:
    return make_voc(tmp_path)


def voc(root: Path, *parts: str) -> Path:
    return root.joinpath("VOCdevkit", "VOC2012", *parts)


def result(root: Path, subset: str, stem: str) -> np.ndarray:
    return read_png(voc(root, "annotations_detectron2", subset, f"{stem}.png"))


def expected(label: np.ndarray) -> np.ndarray:
    """Value minus 1; background and void are 255."""
    return np.where((label == 0) | (label == 255), 255, label - 1)


def test_every_label_of_both_sources(tmp_path: Path, raw: dict[str, Labels]) -> None:
    before = snapshot(tmp_path)
    run_script(SCRIPT, tmp_path)
    assert before.items() <= snapshot(tmp_path).items()
    for subset, parts in (("train", ("train", "aug")), ("val", ("val",))):
        labels = {stem: label for part in parts for stem, label in raw[part].items()}
        folder = voc(tmp_path, "annotations_detectron2", subset)
        assert sorted(os.listdir(folder)) == sorted(f"{stem}.png" for stem in labels)
        assert folder.with_suffix(".txt").read_text().split() == sorted(labels)
        for stem, label in labels.items():
            written = result(tmp_path, subset, stem)
            np.testing.assert_array_equal(written, expected(label))
            assert written.dtype == np.uint8


def test_an_image_that_a_list_has_twice_is_named(tmp_path: Path, raw: dict[str, Labels]) -> None:
    path = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    names = path.read_text().split()
    write_list(path, [*names, names[1], "2007_000032"])
    message = script_error(SCRIPT, tmp_path, "--only", "voc2012_val")
    assert f"{path}: found '{names[1]}' twice, expected each image once" in message


LISTS = {
    "mark": lambda names: "\ufeff" + "\n".join(names),
    "extensions": lambda names: "\r\n".join(f"{name}.jpg" for name in names),
    "folders": lambda names: "\n".join(
        f"/JPEGImages/{name}.jpg /SegmentationClass/{name}.png" for name in names
    ),
    "back-slashes": lambda names: "\n".join(f".\\JPEGImages\\{name}.JPG 1" for name in names),
}


@pytest.mark.parametrize("form", LISTS)
def test_other_spellings_of_lists_and_extensions(
    form: str, tmp_path: Path, raw: dict[str, Labels]
) -> None:
    """The same labels as of the download, and none is lost."""
    run_script(SCRIPT, tmp_path)
    before = snapshot(voc(tmp_path, "annotations_detectron2"))
    shutil.rmtree(voc(tmp_path, "annotations_detectron2"))
    for subset in ("train", "val"):
        path = voc(tmp_path, "ImageSets", "Segmentation", f"{subset}.txt")
        path.write_text(LISTS[form](path.read_text().split()))
    for path in list(voc(tmp_path, "JPEGImages").iterdir())[::2]:
        path.rename(path.with_suffix(".JPG"))
    run_script(SCRIPT, tmp_path)
    assert snapshot(voc(tmp_path, "annotations_detectron2")) == before
    with benchmarks_at(tmp_path):
        assert len(DatasetCatalog.get("voc2012_train")) == 5


def test_prepared_data_reach_the_mapper(tmp_path: Path, raw: dict[str, Labels]) -> None:
    run_script(SCRIPT, tmp_path)
    with benchmarks_at(tmp_path):
        samples = DatasetCatalog.get("voc2012_train")
        cfg = toy_config("DATASETS.TRAIN", ("voc2012_train",), "INPUT.CROP.ENABLED", False)
        mapper = ZeroShotDatasetMapper(cfg, is_train=True)
        values = set()
        for sample in samples:
            values |= set(mapper(sample)["sem_seg"].unique().tolist())
    assert [sample["image_id"] for sample in samples] == sorted({**raw["train"], **raw["aug"]})
    # The five unseen classes are ignored.
    assert values == {*range(15), 255}


def test_converted_sbd_labels_are_taken_without_the_mat_files(
    tmp_path: Path, raw: dict[str, Labels]
) -> None:
    shutil.rmtree(tmp_path / "benchmark_RELEASE")
    for stem, label in {**raw["train"], **raw["val"], **raw["aug"]}.items():
        write_gray(voc(tmp_path, "SegmentationClassAug", f"{stem}.png"), label % 255)
    run_script(SCRIPT, tmp_path)
    for part in ("train", "aug"):
        for stem, label in raw[part].items():
            np.testing.assert_array_equal(result(tmp_path, "train", stem), expected(label))
    assert not voc(tmp_path, "annotations_detectron2", "train", "2007_000033.png").exists()


def test_incomplete_data_are_refused_unless_allowed(
    tmp_path: Path, raw: dict[str, Labels], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        script(SCRIPT).invoke_main(["--root", str(tmp_path), "--workers", "1"])
    message = str(caught.value.code)
    assert "voc2012_train: found 5 images with labels, expected 10582" in message
    assert "--allow-missing" in message and "datasets/README.md" in message
    voc(tmp_path, "JPEGImages", "2008_000003.jpg").unlink()
    with pytest.raises(SystemExit) as caught:
        script(SCRIPT).invoke_main(["--root", str(tmp_path), "--workers", "1"])
    message = "1 of 5 images have no image file, such as 2008_000003"
    assert message in str(caught.value.code)
    run_script(SCRIPT, tmp_path)
    listed = voc(tmp_path, "annotations_detectron2", "train.txt").read_text().split()
    assert len(listed) == 4 and "2008_000003" not in listed
    with benchmarks_at(tmp_path):
        assert len(DatasetCatalog.get("voc2012_train")) == 4


def test_an_empty_tree_is_refused_even_then(tmp_path: Path, raw: dict[str, Labels]) -> None:
    shutil.rmtree(voc(tmp_path, "JPEGImages"))
    assert "found 0 images with labels" in script_error(SCRIPT, tmp_path)


@pytest.mark.parametrize(
    ("gone", "expected_text"),
    [
        ("VOCdevkit", "no folder with VOC 2012: looked for "),
        ("VOCdevkit/VOC2012/ImageSets", "train.txt: no readable list of images"),
        ("benchmark_RELEASE/dataset/val.txt", "val.txt: no readable list of images"),
    ],
)
def test_a_wrong_tree_says_what_is_missing(
    gone: str, expected_text: str, tmp_path: Path, raw: dict[str, Labels]
) -> None:
    path = tmp_path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    message = script_error(SCRIPT, tmp_path)
    assert expected_text in message and "datasets/README.md" in message


def test_without_sbd_there_is_voc_alone(
    tmp_path: Path, raw: dict[str, Labels], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(tmp_path / "benchmark_RELEASE")
    with pytest.raises(SystemExit) as caught:
        script(SCRIPT).invoke_main(["--root", str(tmp_path), "--workers", "1"])
    message = str(caught.value.code)
    assert "no folder with the annotations of SBD: looked for " in message
    assert "datasets/README.md" in message and "--allow-missing" in message
    run_script(SCRIPT, tmp_path)
    assert "the annotations of SBD" in caplog.text and "found 2 images" in caplog.text
    for subset in ("train", "val"):
        for stem, label in raw[subset].items():
            np.testing.assert_array_equal(result(tmp_path, subset, stem), expected(label))
    with benchmarks_at(tmp_path):
        assert [len(DatasetCatalog.get(f"voc2012_{part}")) for part in ("train", "val")] == [2, 2]
    # Who names a folder wants it, and no other one.
    write_gray(voc(tmp_path, "SegmentationClassAug", "2007_000032.png"), np.zeros(SIZE))
    message = script_error(SCRIPT, tmp_path, "--sbd", tmp_path / "nowhere")
    assert f"no folder with the annotations of SBD: looked for {tmp_path}/nowhere; " in message
    assert message.endswith("(left out: voc2012_train; prepared: voc2012_val)")


def test_sbd_that_comes_later_is_added(tmp_path: Path, raw: dict[str, Labels]) -> None:
    """VOC's own labels stay as they are; other labels of SBD are not added to these."""
    moved = (tmp_path / "benchmark_RELEASE").rename(tmp_path / "later")
    only = ("--only", "voc2012_train")
    run_script(SCRIPT, tmp_path, *only)
    run_script(SCRIPT, tmp_path, *only, "--sbd", moved / "dataset")
    for part in ("train", "aug"):
        for stem, label in raw[part].items():
            np.testing.assert_array_equal(result(tmp_path, "train", stem), expected(label))
    before = snapshot(tmp_path)
    own, sbd = "VOCdevkit/VOC2012/SegmentationClass (voc2012)", "later/dataset/cls (voc2012)"
    message = script_error(SCRIPT, tmp_path, *only)
    assert f"train.json: found labels made from {own} and {sbd}, expected {own}; run " in message
    other = shutil.copytree(moved / "dataset", tmp_path / "other")
    message = script_error(SCRIPT, tmp_path, *only, "--sbd", other)
    assert f"expected {own} and other/cls (voc2012); run it with the options of " in message
    shutil.rmtree(other)
    assert snapshot(tmp_path) == before


def test_a_root_that_is_moved_has_the_same_labels(tmp_path: Path, raw: dict[str, Labels]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for path in list(tmp_path.iterdir()):
        if path != root:
            path.rename(root / path.name)
    run_script(SCRIPT, root)
    before = snapshot(root)
    moved = root.rename(tmp_path / "moved")
    run_script(SCRIPT, moved)
    (tmp_path / "link").symlink_to(moved)
    run_script(SCRIPT, tmp_path / "link", "--sbd", moved / "benchmark_RELEASE" / "dataset")
    assert snapshot(moved) == before


def test_sbd_for_a_dataset_that_does_not_read_it_is_refused(
    tmp_path: Path, raw: dict[str, Labels]
) -> None:
    folder = tmp_path / "benchmark_RELEASE" / "dataset"
    line = f"^ConfigError: --sbd is {folder}, but --only names no dataset that reads SBD; name "
    with pytest.raises(SystemExit, match=line):
        run_script(SCRIPT, tmp_path, "--only", "voc2012_val", "--sbd", folder)
    assert not voc(tmp_path, "annotations_detectron2").exists()
    run_script(SCRIPT, tmp_path, "--only", "voc2012_val", "voc2012_train", "--sbd", folder)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"GTinst": {"Segmentation": np.zeros(SIZE, np.uint8)}}, "GTinst"),
        ({"GTcls": {"Boundaries": 1}, "x": 0}, "GTcls.Boundaries"),
        ({"GTcls": np.zeros(SIZE, np.uint8)}, "(none)"),
        ({}, "(none)"),
    ],
)
def test_mat_files_of_something_else_say_what_they_hold(
    tmp_path: Path, raw: dict[str, Labels], content: dict, found: str
) -> None:
    mat = tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / "2008_000002.mat"
    savemat(mat, content)
    message = script_error(SCRIPT, tmp_path)
    assert f"{mat}: found the variables {found}, expected GTcls" in message
    assert "; name SBD's folder" in message and message.endswith("prepared: voc2012_val)")


def test_mat_files_of_format_7_3_are_named(tmp_path: Path, raw: dict[str, Labels]) -> None:
    mat = tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / "2008_000002.mat"
    # The header that MATLAB writes before the HDF5 part.
    mat.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF" + bytes(512))
    message = script_error(SCRIPT, tmp_path)
    assert f"{mat}: found MATLAB's format 7.3" in message and "-v7" in message


def test_damaged_label_files_are_named(tmp_path: Path, raw: dict[str, Labels]) -> None:
    mat = tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / "2008_000002.mat"
    content = mat.read_bytes()
    mat.write_bytes(content[: len(content) // 2])
    message = script_error(SCRIPT, tmp_path)
    assert "2008_000002.mat: cannot read this label file" in message
    mat.write_bytes(content)
    png = voc(tmp_path, "SegmentationClass", "2007_000042.png")
    png.write_bytes(b"<html>")
    message = script_error(SCRIPT, tmp_path, "--overwrite")
    assert "2007_000042.png: cannot decode this label file" in message


def test_labels_of_another_size_are_refused(tmp_path: Path, raw: dict[str, Labels]) -> None:
    write_gray(voc(tmp_path, "SegmentationClass", "2007_000042.png"), np.zeros((3, 3)))
    message = script_error(SCRIPT, tmp_path, "--only", "voc2012_val")
    assert "2007_000042.png: label is 3x3 (width x height), its image is 24x18" in message


def test_unexpected_raw_values_are_refused(tmp_path: Path, raw: dict[str, Labels]) -> None:
    """A palette that somebody converted to gray."""
    write_gray(voc(tmp_path, "SegmentationClass", "2007_000033.png"), random_label([38, 75], 0))
    message = script_error(SCRIPT, tmp_path, "--only", "voc2012_val")
    assert "2007_000033.png: value " in message and "is none of voc2012" in message


def _foreign(root: Path, labels: Labels, subset: str) -> None:
    for stem, label in labels.items():
        write_gray(voc(root, "annotations_detectron2", subset, f"{stem}.png"), label)


def test_labels_of_other_converters_are_kept_if_they_agree(
    tmp_path: Path, raw: dict[str, Labels]
) -> None:
    """In training, classes on void borders are allowed (zsseg, from SegmentationClassAug)."""
    val = {stem: expected(label) for stem, label in raw["val"].items()}
    train = {s: np.where(x == 255, 3, expected(x)) for s, x in raw["train"].items()}
    _foreign(tmp_path, val, "val")
    _foreign(tmp_path, train, "train")
    before = snapshot(voc(tmp_path, "annotations_detectron2"))
    run_script(SCRIPT, tmp_path)
    after = snapshot(voc(tmp_path, "annotations_detectron2"))
    assert before.items() <= after.items()
    assert len(after) == 5 + 2 + 4


@pytest.mark.parametrize("change", ["shifted", "raw", "borders"])
def test_labels_of_other_converters_are_refused_if_they_differ(
    change: str, tmp_path: Path, raw: dict[str, Labels]
) -> None:
    changes = {
        "shifted": lambda x: np.where(expected(x) == 255, 255, (expected(x) + 1) % 20),
        "raw": lambda x: x,
        "borders": lambda x: np.where(x == 255, 3, expected(x)),
    }
    _foreign(tmp_path, {s: changes[change](x) for s, x in raw["val"].items()}, "val")
    before = snapshot(tmp_path)
    message = script_error(SCRIPT, tmp_path, "--only", "voc2012_val")
    assert "another converter wrote these labels" in message and "move the folder" in message
    assert snapshot(tmp_path) == before
    run_script(SCRIPT, tmp_path, "--only", "voc2012_val", "--overwrite")
    for stem, label in raw["val"].items():
        np.testing.assert_array_equal(result(tmp_path, "val", stem), expected(label))
