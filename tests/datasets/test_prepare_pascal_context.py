"""PASCAL Context: .mat annotations to 59, 60 and 459 classes, and its two class orders."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from helpers.miniature_trees import (
    Labels,
    benchmarks_at,
    class_names,
    context_ids,
    make_context,
    read_png,
    run_script,
    script_error,
    write_gray,
)
from helpers.toy_dataset import toy_config
from scipy.io import savemat

from tagclip.data import ZeroShotDatasetMapper

SCRIPT = "prepare_pascal_context"
VOC = Path("VOCdevkit", "VOC2010")
FOUR = [f"pascal_context{k}_{subset}" for k in (59, 60) for subset in ("train", "val")]


def voc_first() -> list[str]:
    """The order of 59_labels.txt: the classes of VOC, then the others, four out of alphabet."""
    voc = ["table" if name == "diningtable" else name for name in class_names("voc20")]
    rest = [name for name in class_names("context59") if name not in voc]
    for name, behind in (("bedclothes", "snow"), ("curtain", "mouse"), ("sign", "platform")):
        rest.remove(name)
        rest.insert(rest.index(behind) + 1, name)
    rest.remove("plate")
    rest.insert(rest.index("sign") + 1, "plate")
    return [*voc, *rest]


def check_results(root: Path, raw: Labels, datasets: list[str]) -> None:
    names = class_names("context59")
    for dataset in datasets:
        first = 1 if "60" in dataset else 0
        folder = root / VOC / "annotations_detectron2" / dataset.replace("pascal_context", "pc")
        stems = folder.with_suffix(".txt").read_text().split()
        assert len(stems) == (3 if dataset.endswith("train") else 2)
        for stem in stems:
            expected = context_ids(raw[stem], names, first)
            np.testing.assert_array_equal(read_png(folder / f"{stem}.png"), expected)


def test_mat_files_to_all_class_lists(tmp_path: Path) -> None:
    raw = make_context(tmp_path)
    run_script(SCRIPT, tmp_path)
    check_results(tmp_path, raw, FOUR)
    folder = tmp_path / VOC / "annotations_detectron2" / "pc459_val"
    for stem in ("2008_000009", "2010_006021"):
        result = read_png(folder / f"{stem}.tif")
        expected = np.where(raw[stem] == 0, 65535, raw[stem] - 1)
        np.testing.assert_array_equal(result, expected)
    with benchmarks_at(tmp_path):
        assert len(DatasetCatalog.get("pascal_context459_val")) == 2
        for name in ("pascal_context59_train", "pascal_context459_val"):
            opts = ("DATASETS.TRAIN", (name,), "INPUT.CROP.ENABLED", False)
            setting = ("DATASETS.ZERO_SHOT.SETTING", "supervised")
            mapper = ZeroShotDatasetMapper(toy_config(*opts, *setting), is_train=True)
            (sample, *_) = DatasetCatalog.get(name)
            labels = mapper(sample)["sem_seg"].unique().tolist()
            assert len(labels) > 10 and max(labels) <= (459 if "459" in name else 255)


def test_lists_of_mmsegmentation_come_first(tmp_path: Path) -> None:
    make_context(tmp_path)
    lists = tmp_path / VOC / "ImageSets"
    shutil.copytree(lists / "Main", lists / "SegmentationContext")
    (lists / "SegmentationContext" / "val.txt").write_text("2010_006021\n")
    run_script(SCRIPT, tmp_path, "--only", "pascal_context59_val")
    listed = tmp_path / VOC / "annotations_detectron2" / "pc59_val.txt"
    assert listed.read_text() == "2010_006021\n"


def test_another_labels_txt_is_refused(tmp_path: Path) -> None:
    make_context(tmp_path)
    path = tmp_path / VOC / "labels.txt"
    path.write_text(path.read_text().replace("2: aeroplane", "2: bag"))
    message = script_error(SCRIPT, tmp_path)
    assert "labels.txt: class 2 is 'bag', expected 'aeroplane'" in message


@pytest.mark.parametrize("mat", [True, False])
@pytest.mark.parametrize("order", ["alphabetical", "voc_first"])
@pytest.mark.parametrize("first", [0, 1])
def test_both_orders_of_other_converters_are_recognized(
    mat: bool, order: str, first: int, tmp_path: Path
) -> None:
    """By the .mat files, or by VOC's labels; first 1 is with background."""
    raw = make_context(tmp_path, mat=mat)
    names = class_names("context59") if order == "alphabetical" else voc_first()
    for stem, label in raw.items():
        write_gray(tmp_path / "converted" / f"{stem}.png", context_ids(label, names, first))
    converted = ("--converted", tmp_path / "converted")
    run_script(SCRIPT, tmp_path, *converted, "--only", *FOUR)
    check_results(tmp_path, raw, FOUR)
    message = script_error(SCRIPT, tmp_path, *converted, "--only", "pascal_context459_val")
    assert "at most 60 classes, expected the .mat files" in message
    other = "voc_first" if order == "alphabetical" else "alphabetical"
    wrong = ("--order", f"context{59 + first}_{other}", "--overwrite")
    message = script_error(SCRIPT, tmp_path, *converted, "--only", FOUR[0], *wrong)
    assert f"the converted labels are context{59 + first}_{order}" in message


def test_mmsegmentations_folder_is_found_without_mat_files(tmp_path: Path) -> None:
    raw = make_context(tmp_path, mat=False)
    for stem, label in raw.items():
        path = tmp_path / VOC / "SegmentationClassContext" / f"{stem}.png"
        write_gray(path, context_ids(label, class_names("context59"), 1))
    run_script(SCRIPT, tmp_path, "--only", *FOUR)
    check_results(tmp_path, raw, FOUR)


@pytest.mark.parametrize("place", ["SegmentationClassContext", "converted"])
def test_a_folder_of_mat_files_that_is_not_there_is_refused(place: str, tmp_path: Path) -> None:
    """Whatever else could be taken."""
    raw = make_context(tmp_path, mat=False)
    for stem, label in raw.items():
        path = tmp_path / VOC / place / f"{stem}.png"
        write_gray(path, context_ids(label, class_names("context59"), 1))
    options = ["--only", *FOUR]
    if place == "converted":
        options += ["--converted", tmp_path / VOC / place]
    line = f"^ConfigError: --mat {tmp_path}/nowhere: found no folder, expected that of the .mat"
    with pytest.raises(SystemExit, match=line):
        run_script(SCRIPT, tmp_path, *options, "--mat", tmp_path / "nowhere")
    run_script(SCRIPT, tmp_path, *options)
    check_results(tmp_path, raw, FOUR)


def test_labels_of_other_mat_files_are_not_added_to(tmp_path: Path) -> None:
    raw = make_context(tmp_path)
    only, record = ("--only", "pascal_context60_val"), f"{VOC}/annotations_detectron2/pc60_val.json"
    other = shutil.copytree(tmp_path / VOC / "trainval", tmp_path / "other")
    run_script(SCRIPT, tmp_path, *only)
    message = script_error(SCRIPT, tmp_path, *only, "--mat", other)
    assert (
        f"{record}: found labels made from {VOC}/trainval (context459), expected other" in message
    )
    run_script(SCRIPT, tmp_path, *only, "--mat", other, "--overwrite")
    check_results(tmp_path, raw, ["pascal_context60_val"])


def test_orders_without_evidence_need_a_word(tmp_path: Path) -> None:
    raw = make_context(tmp_path, mat=False)
    shutil.rmtree(tmp_path / VOC / "SegmentationClass")
    for stem, label in raw.items():
        path = tmp_path / "converted" / f"{stem}.png"
        write_gray(path, context_ids(label, voc_first(), 0))
    options = ("--converted", tmp_path / "converted", "--only", "pascal_context59_val")
    assert "cannot tell the class order" in script_error(SCRIPT, tmp_path, *options)
    run_script(SCRIPT, tmp_path, *options, "--order", "context59_voc_first")
    check_results(tmp_path, raw, ["pascal_context59_val"])


def test_the_other_order_in_our_place_is_refused(tmp_path: Path) -> None:
    """Labels of OV-Seg in the folder that CAT-Seg uses too."""
    raw = make_context(tmp_path)
    for stem in ("2008_000009", "2010_006021"):
        path = tmp_path / VOC / "annotations_detectron2" / "pc59_val" / f"{stem}.png"
        write_gray(path, context_ids(raw[stem], voc_first(), 0))
    message = script_error(SCRIPT, tmp_path, "--only", "pascal_context59_val")
    assert "another converter wrote these labels with other ids" in message


@pytest.mark.parametrize("content", [{"GTcls": {"x": 1}}, {"labels": 1, "names": 2}])
def test_mat_files_of_something_else_say_what_they_hold(tmp_path: Path, content: dict) -> None:
    make_context(tmp_path)
    mat = tmp_path / VOC / "trainval" / "2008_000009.mat"
    savemat(mat, content)
    message = script_error(SCRIPT, tmp_path)
    assert f"{mat}: found the variables {', '.join(content)}, expected LabelMap; name" in message
    assert "--mat" in message
    done = "prepared: pascal_context59_train, pascal_context60_train)"
    assert message.endswith(done)


def test_without_any_labels(tmp_path: Path) -> None:
    make_context(tmp_path, mat=False)
    message = script_error(SCRIPT, tmp_path)
    assert "no folder with the .mat files of PASCAL Context: looked for" in message
