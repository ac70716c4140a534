"""COCO-Stuff 164k: raw values with holes, the trees of other projects, ZegFormer's class order."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from helpers.miniature_trees import (
    COCO_VALUES,
    Labels,
    benchmarks_at,
    class_names,
    make_coco,
    read_png,
    run_script,
    script,
    script_error,
    snapshot,
    write_gray,
)
from helpers.toy_dataset import toy_config

from tagclip.data import Protocol, ZeroShotDatasetMapper

SCRIPT = "prepare_coco_stuff"
RESULT = "coco/stuffthingmaps_detectron2"
UNSEEN = [19, 23, 28, 29, 36, 51, 76, 88, 94, 112, 133, 136, 137, 157, 160]


def ids(raw: np.ndarray) -> np.ndarray:
    """Rank among the annotated values."""
    return np.where(raw == 255, 255, np.searchsorted(COCO_VALUES, raw)).astype(np.uint8)


def seen_first(raw: np.ndarray) -> np.ndarray:
    """ZegFormer's ids: the seen classes in order, then the unseen ones."""
    order = [i for i in range(171) if i not in UNSEEN] + UNSEEN
    table = np.full(256, 255)
    table[order] = np.arange(171)
    return table[ids(raw)]


def subset_of(stem: str) -> str:
    return "val2017" if stem in ("000000000139", "000000000285") else "train2017"


def check_results(root: Path, raw: Labels) -> None:
    for stem, label in raw.items():
        path = root / RESULT / subset_of(stem) / f"{stem}.png"
        np.testing.assert_array_equal(read_png(path), ids(label))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("coco/{}", "coco/stuffthingmaps/{}"),
        ("coco_stuff164k/images/{}", "coco_stuff164k/annotations/{}"),
        ("coco-stuff/images/{}", "coco-stuff/annotations/{}"),
        ("coco/coco_stuff/images/{}", "coco/coco_stuff/annotations/{}"),
    ],
)
def test_raw_labels_in_every_known_tree(images: str, labels: str, tmp_path: Path) -> None:
    raw = make_coco(tmp_path, images, labels)
    run_script(SCRIPT, tmp_path)
    check_results(tmp_path, raw)
    with benchmarks_at(tmp_path):
        assert len(DatasetCatalog.get("coco_stuff_train")) == 3
        cfg = toy_config("DATASETS.TRAIN", ("coco_stuff_val",), "INPUT.CROP.ENABLED", False)
        mapper = ZeroShotDatasetMapper(cfg, is_train=True)
        samples = [mapper(sample) for sample in DatasetCatalog.get("coco_stuff_val")]
        names = Protocol(cfg).dataset("coco_stuff_val").names
    # Re-indexed to the seen classes: compare by name.
    seen = [name for i, name in enumerate(names) if i not in UNSEEN]
    found = {seen[v] for s in samples for v in s["sem_seg"].unique().tolist() if v != 255}
    stems = ["000000000139", "000000000285"]
    present = {class_names("coco_stuff171")[v] for s in stems for v in ids(raw[s]).flat if v < 255}
    assert found == present & set(seen)


def test_never_annotated_values_are_ignored(tmp_path: Path) -> None:
    make_coco(tmp_path)
    label = np.full((18, 24), 11)
    label[:, :12] = 12
    write_gray(tmp_path / "coco" / "stuffthingmaps" / "val2017" / "000000000139.png", label)
    run_script(SCRIPT, tmp_path, "--only", "coco_stuff_val")
    result = read_png(tmp_path / RESULT / "val2017" / "000000000139.png")
    assert (result[:, :12] == 11).all() and (result[:, 12:] == 255).all()


def _mmsegmentation(root: Path) -> Labels:
    raw = make_coco(root, "coco_stuff164k/images/{}", "coco_stuff164k/annotations/{}")
    for stem, label in raw.items():
        folder = root / "coco_stuff164k" / "annotations" / subset_of(stem)
        write_gray(folder / f"{stem}_labelTrainIds.png", ids(label))
    return raw


def test_converted_labels_in_the_place_of_raw_ones_are_refused(tmp_path: Path) -> None:
    """Else they would be converted again, to other classes."""
    raw = _mmsegmentation(tmp_path)
    folder = tmp_path / "coco_stuff164k" / "annotations" / "train2017"
    for stem, label in raw.items():
        write_gray(folder.parent / subset_of(stem) / f"{stem}.png", ids(label))
    error = script_error(SCRIPT, tmp_path)
    assert error.startswith(f"DatasetError: {folder}: found 11, 25, 44, ")
    assert "among the values and none above 170, expected raw labels" in error
    assert "move the folder away, and name it with --converted" in error
    assert not (tmp_path / RESULT).exists()
    # As told; the files beside them count for nothing.
    moved = folder.parent.rename(tmp_path / "moved")
    run_script(SCRIPT, tmp_path, "--converted", moved, "--order", "coco_stuff_converted")
    check_results(tmp_path, raw)


def test_labels_of_mmsegmentation_are_linked(tmp_path: Path) -> None:
    raw = _mmsegmentation(tmp_path)
    before = snapshot(tmp_path / "coco_stuff164k")
    converted = tmp_path / "coco_stuff164k" / "annotations"
    # In the place of converted ones.
    run_script(SCRIPT, tmp_path)
    run_script(SCRIPT, tmp_path, "--converted", converted, "--overwrite")
    check_results(tmp_path, raw)
    links = list((tmp_path / RESULT).rglob("*.png"))
    assert len(links) == 5
    assert all(p.is_symlink() and not os.path.isabs(p.readlink()) for p in links)
    run_script(SCRIPT, tmp_path, "--converted", converted)
    run_script(SCRIPT, tmp_path, "--converted", converted, "--overwrite")
    check_results(tmp_path, raw)
    assert snapshot(tmp_path / "coco_stuff164k") == before


def test_converted_labels_without_raw_ones_need_a_word(tmp_path: Path) -> None:
    raw = _mmsegmentation(tmp_path)
    converted = tmp_path / "coco_stuff164k" / "annotations"
    for stem in raw:
        (converted / subset_of(stem) / f"{stem}.png").unlink()
    message = script_error(SCRIPT, tmp_path, "--converted", converted)
    assert "cannot tell the class order" in message
    assert "--order: coco_stuff_converted or coco_stuff_seen_first" in message
    run_script(SCRIPT, tmp_path, "--converted", converted, "--order", "coco_stuff_converted")
    check_results(tmp_path, raw)


def _zegformer(root: Path) -> tuple[Labels, Path]:
    raw = make_coco(root, "coco/coco_stuff/images/{}", "coco/coco_stuff/annotations/{}")
    folder = root / "coco" / "coco_stuff" / "annotations_detectron2"
    for stem, label in raw.items():
        subset = subset_of(stem).replace("val2017", "val2017_all")
        write_gray(folder / subset / f"{stem}.png", seen_first(label))
    return raw, folder


def test_zegformers_order_is_recognized_and_remapped(tmp_path: Path) -> None:
    raw, folder = _zegformer(tmp_path)
    run_script(SCRIPT, tmp_path, "--converted", folder)
    check_results(tmp_path, raw)
    assert not any(path.is_symlink() for path in (tmp_path / RESULT).rglob("*.png"))


def test_a_wrong_word_about_the_order_is_refused(tmp_path: Path) -> None:
    _, folder = _zegformer(tmp_path)
    options = ("--converted", folder, "--order", "coco_stuff_converted")
    message = script_error(SCRIPT, tmp_path, *options)
    assert (
        "--order is coco_stuff_converted, but the converted labels are coco_stuff_seen_first"
        in (message)
    )
    assert not (tmp_path / RESULT).exists()


def _two_trees(root: Path) -> tuple[Labels, dict[str, Path]]:
    """Converted labels of both orders and no raw ones; folder by order."""
    raw = make_coco(root)
    shutil.rmtree(root / "coco" / "stuffthingmaps")
    folders = {"coco_stuff_converted": root / "same", "coco_stuff_seen_first": root / "zeg"}
    for stem, label in raw.items():
        name = f"{subset_of(stem)}/{stem}.png"
        write_gray(folders["coco_stuff_converted"] / name, ids(label))
        write_gray(folders["coco_stuff_seen_first"] / name, seen_first(label))
    return raw, folders


def _interrupted(patch: pytest.MonkeyPatch, root: Path, *options: object) -> None:
    """A run that Ctrl-C ends when it has written one label."""
    common = script("prepare_common")
    make, made = common.make_label, []

    def interrupt(task: object) -> bool:
        if made:
            raise KeyboardInterrupt
        made.append(task)
        return make(task)

    with patch.context() as inner, pytest.raises(SystemExit) as caught:
        inner.setattr(common, "make_label", interrupt)
        run_script(SCRIPT, root, *options)
    assert caught.value.code == 130 and len(made) == 1


@pytest.mark.parametrize("is_complete", [False, True])
@pytest.mark.parametrize(
    ("order", "wrong"),
    [
        ("coco_stuff_converted", "coco_stuff_seen_first"),
        ("coco_stuff_seen_first", "coco_stuff_converted"),
    ],
)
def test_labels_of_another_order_are_not_added_to(
    order: str, wrong: str, is_complete: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped order, also one by which the labels were linked."""
    raw, folders = _two_trees(tmp_path)
    val = {stem: label for stem, label in raw.items() if subset_of(stem) == "val2017"}
    options = ("--only", "coco_stuff_val", "--converted", folders[order], "--order")
    if is_complete:
        run_script(SCRIPT, tmp_path, *options, wrong)
    else:
        _interrupted(monkeypatch, tmp_path, *options, wrong)
    before = snapshot(tmp_path)
    message = script_error(SCRIPT, tmp_path, *options, order)
    record, folder = tmp_path / RESULT / "val2017.json", f"{folders[order].name}/val2017"
    assert message.startswith(
        f"DatasetError: {record}: found labels made from {folder} ({wrong}), expected {folder} "
        f"({order}); run it with the options of before, or pass --overwrite to write them anew"
    )
    assert snapshot(tmp_path) == before
    run_script(SCRIPT, tmp_path, *options, order, "--overwrite")
    check_results(tmp_path, val)
    after = snapshot(tmp_path)
    assert all(after[name] == text for name, text in before.items() if not name.startswith("coco/"))
    run_script(SCRIPT, tmp_path, *options, order)
    assert snapshot(tmp_path) == after


def test_labels_of_another_folder_are_not_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their order is the same, but they need not be."""
    raw, folders = _two_trees(tmp_path)
    order = "coco_stuff_seen_first"
    other = shutil.copytree(folders[order], tmp_path / "other")
    for path in other.rglob("*.png"):
        write_gray(path, np.full((18, 24), 7))
    _interrupted(monkeypatch, tmp_path, "--converted", other, "--order", order)
    options = ("--converted", folders[order], "--order", order)
    message = script_error(SCRIPT, tmp_path, *options)
    assert f"found labels made from other/train2017 ({order}), expected zeg/train2017 (" in message
    run_script(SCRIPT, tmp_path, *options, "--overwrite")
    check_results(tmp_path, raw)


def test_labels_beside_the_list_are_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--overwrite made some of the labels anew: the record does not speak for the others."""
    raw, folders = _two_trees(tmp_path)
    order, wrong = "coco_stuff_seen_first", "coco_stuff_converted"
    late = folders[order] / "val2017" / "000000000285.png"
    options = ("--only", "coco_stuff_val", "--converted", folders[order], "--order")
    run_script(SCRIPT, tmp_path, *options, wrong)
    content = late.read_bytes()
    (tmp_path / RESULT / "val2017" / late.name).unlink()
    (tmp_path / RESULT / "val2017" / late.name).write_bytes(content)
    late.unlink()
    run_script(SCRIPT, tmp_path, *options, order, "--overwrite")
    late.write_bytes(content)
    message = script_error(SCRIPT, tmp_path, *options, order)
    assert f"val2017/{late.name}: found " in message and "move the folder away" in message
    run_script(SCRIPT, tmp_path, *options, order, "--overwrite")
    check_results(tmp_path, {stem: raw[stem] for stem in raw if subset_of(stem) == "val2017"})


@pytest.mark.parametrize("is_complete", [False, True])
def test_a_record_of_an_earlier_version_is_taken_for_one_of_the_same_labels(
    is_complete: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, folders = _two_trees(tmp_path)
    order = "coco_stuff_seen_first"
    options = ("--only", "coco_stuff_val", "--converted", folders[order], "--order", order)
    if is_complete:
        run_script(SCRIPT, tmp_path, *options)
    else:
        _interrupted(monkeypatch, tmp_path, *options)
    record = tmp_path / RESULT / "val2017.json"
    tree = json.loads(record.read_text())
    expected = [{"folder": "zeg/val2017", "label_map": order}]
    assert tree.pop("sources") == expected
    record.write_text(json.dumps(tree))
    if is_complete:
        with benchmarks_at(tmp_path):
            assert len(DatasetCatalog.get("coco_stuff_val")) == 2
    before = record.read_bytes()
    run_script(SCRIPT, tmp_path, *options)
    if is_complete:
        assert record.read_bytes() == before
    else:
        assert json.loads(record.read_text())["sources"] == expected
    check_results(tmp_path, {stem: raw[stem] for stem in raw if subset_of(stem) == "val2017"})


def test_an_order_of_raw_labels_is_refused(tmp_path: Path) -> None:
    make_coco(tmp_path)
    with pytest.raises(SystemExit, match="ConfigError: --order is coco_stuff_seen_first, but raw"):
        run_script(SCRIPT, tmp_path, "--order", "coco_stuff_seen_first")


def test_zegformers_order_in_our_place_is_refused(tmp_path: Path) -> None:
    """Neither taken for ours, nor converted onto itself."""
    raw = make_coco(tmp_path)
    for stem, label in raw.items():
        write_gray(tmp_path / RESULT / subset_of(stem) / f"{stem}.png", seen_first(label))
    message = script_error(SCRIPT, tmp_path)
    assert "another converter wrote these labels with other ids" in message
    message = script_error(SCRIPT, tmp_path, "--converted", tmp_path / RESULT)
    assert "cannot be converted to itself" in message


def test_the_same_ids_in_our_place_are_taken_without_raw_labels(tmp_path: Path) -> None:
    raw = make_coco(tmp_path)
    shutil.rmtree(tmp_path / "coco" / "stuffthingmaps")
    for stem, label in raw.items():
        write_gray(tmp_path / RESULT / subset_of(stem) / f"{stem}.png", ids(label))
    before = snapshot(tmp_path / RESULT)
    options = ("--converted", tmp_path / RESULT, "--order", "coco_stuff_converted")
    run_script(SCRIPT, tmp_path, *options)
    run_script(SCRIPT, tmp_path, *options, "--overwrite")
    assert before.items() <= snapshot(tmp_path / RESULT).items()


def test_shifted_labels_are_refused(tmp_path: Path) -> None:
    """JSON ids, one higher than the values of stuffthingmaps."""
    raw = make_coco(tmp_path)
    for stem, label in raw.items():
        shifted = np.where(label == 255, 255, label + 1)
        write_gray(tmp_path / "shifted" / subset_of(stem) / f"{stem}.png", shifted)
    message = script_error(SCRIPT, tmp_path, "--converted", tmp_path / "shifted")
    assert "follow no known class order" in message and "shifted" in message


def test_a_missing_tree_says_where_it_should_be(tmp_path: Path) -> None:
    message = script_error(SCRIPT, tmp_path)
    assert "no folder with images of train2017: looked for" in message
    make_coco(tmp_path)
    shutil.rmtree(tmp_path / "coco" / "stuffthingmaps")
    message = script_error(SCRIPT, tmp_path, "--only", "coco_stuff_val")
    assert "no folder with labels of val2017" in message and "stuffthingmaps" in message


@pytest.mark.parametrize("gone", ["train2017", "stuffthingmaps/train2017"])
def test_a_missing_dataset_does_not_stop_the_next(tmp_path: Path, gone: str) -> None:
    make_coco(tmp_path)
    shutil.rmtree(tmp_path / "coco" / gone)
    message = script_error(SCRIPT, tmp_path)
    assert message.endswith("(left out: coco_stuff_train; prepared: coco_stuff_val)")
    assert len((tmp_path / RESULT / "val2017.txt").read_text().split()) == 2
    # The remedy ends.
    (tmp_path / "coco" / gone).mkdir()
    message = script_error(SCRIPT, tmp_path)
    assert "--only" in message and "--allow-missing" not in message
    run_script(SCRIPT, tmp_path, "--only", "coco_stuff_val")


def test_what_lies_where_the_images_are_linked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file is named, a link that leads nowhere is replaced."""
    raw = make_coco(tmp_path, "coco_stuff164k/images/{}", "coco_stuff164k/annotations/{}")
    place = tmp_path / "coco" / "val2017"
    place.parent.mkdir()
    place.write_text("not a folder")
    options = ("--only", "coco_stuff_val")
    line = f"DatasetError: {place}: found a file, expected a folder of images or nothing there; "
    assert script_error(SCRIPT, tmp_path, *options).startswith(line)
    place.unlink()
    place.symlink_to("gone/val2017")
    caplog.set_level("INFO")
    run_script(SCRIPT, tmp_path, *options)
    assert f"{place}: was a link to gone/val2017, which leads nowhere; now it" in caplog.text
    assert place.readlink() == Path("../coco_stuff164k/images/val2017")
    assert len([stem for stem in raw if (place / f"{stem}.jpg").is_file()]) == 2


def test_images_without_label_are_counted(tmp_path: Path) -> None:
    make_coco(tmp_path)
    (tmp_path / "coco" / "stuffthingmaps" / "train2017" / "000000000025.png").unlink()
    run_script(SCRIPT, tmp_path, "--only", "coco_stuff_train")
    listed = (tmp_path / RESULT / "train2017.txt").read_text().split()
    assert listed == ["000000000009", "000000000030"]
