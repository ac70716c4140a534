"""Bad datasets: missing, not converted, incomplete, registered twice, very long."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.bench import NO_TEST, Bench, files_below, problems, refused, refused_as_process
from helpers.miniature_trees import make_voc, run_script, script_error
from helpers.paths import REPOSITORY
from helpers.tiny_run import NAMES, tiny_tree
from helpers.toy_dataset import write_json
from PIL import Image

from tagclip import ZeroShotTrainer, register_zero_shot_sem_seg

pytestmark = pytest.mark.usefixtures("benchmarks")
TRAIN_VOC = ("DATASETS.TRAIN", "('voc2012_train',)", *NO_TEST)
PREPARE_VOC = "run: tagclip prepare voc"


def test_missing_data(bench: Bench) -> None:
    """At build time: the path looked for, the variable, the command that makes it."""
    folder = bench.root / "data" / "VOCdevkit" / "VOC2012" / "JPEGImages"
    bench.patch.delenv("DETECTRON2_DATASETS", raising=False)
    parts = ("DatasetError: dataset voc2012_train: no image folder", folder, PREPARE_VOC)
    refused(bench.training(*TRAIN_VOC), *parts, "(DETECTRON2_DATASETS is not set)")
    bench.patch.setenv("DETECTRON2_DATASETS", "/data")
    refused(bench.training(*TRAIN_VOC), *parts, "(DETECTRON2_DATASETS is '/data')")
    refused(lambda: bench.validate("voc2012_train"), *parts)
    assert not bench.output.exists()


def test_missing_raw_data(bench: Bench) -> None:
    """The prepare command says what to download."""
    line = script_error("prepare_voc", bench.root / "empty")
    assert str(bench.root / "empty" / "VOCdevkit" / "VOC2012") in line
    assert "datasets/README.md" in line and not (bench.root / "empty").exists()


def test_missing_data_as_a_process(bench: Bench) -> None:
    bench.patch.setenv("DETECTRON2_DATASETS", str(bench.root / "nowhere"))
    config = next(REPOSITORY.glob("configs/voc/tagclip*_inductive.yaml"))
    refused_as_process(
        bench.root,
        ("train_net.py", "--config-file", config, *TRAIN_VOC),
        "DatasetError: dataset voc2012_train: no image folder",
        bench.root / "nowhere" / "VOCdevkit",
        PREPARE_VOC,
    )
    assert not (bench.root / "output").exists()


def test_data_that_is_not_converted(bench: Bench) -> None:
    """As without data, naming the command; after it the dataset is there."""
    make_voc(bench.root / "data")
    before = files_below(bench.root / "data")
    parts = ("DatasetError: dataset voc2012_train: no label folder", bench.root, PREPARE_VOC)
    refused(bench.training(*TRAIN_VOC), *parts)
    assert files_below(bench.root / "data") == before and not bench.output.exists()
    run_script("prepare_voc", bench.root / "data")
    assert len(DatasetCatalog.get("voc2012_train")) == 5


def test_images_and_labels_without_each_other(bench: Bench) -> None:
    """Counts and five examples, whichever is missing."""
    name = bench.cfg.DATASETS.TRAIN[0]
    image, label = bench.file("images", "train"), bench.file("labels", "train")
    for file, what, other in ((image, "images", "label"), (label, "labels", "image")):
        extra = [file.with_name(f"extra{index}.png") for index in range(7)]
        for path in extra:
            path.write_bytes(file.read_bytes())
        refused(
            bench.training(),
            f"DatasetError: dataset {name}: 7 {what} without {other} in",
            "such as extra0, extra1, extra2, extra3, extra4; add what is missing, or go on ",
        )
        code, reports, _ = bench.validate(name)
        found = problems(reports[name])[f"lonely_{what[:-1]}"]
        assert (code, found["count"], len(found["examples"])) == (1, 7, 5)
        assert not bench.output.exists() and all(path.exists() for path in extra)
        for path in extra:
            path.unlink()


def test_images_and_labels_without_each_other_are_skipped(bench: Bench) -> None:
    """Training and evaluation go on with the rest; totals in the log and in the result."""
    skip = ("DATASETS.ON_BAD_SAMPLE", "skip")
    train, test = bench.cfg.DATASETS.TRAIN[0], bench.cfg.DATASETS.TEST[0]
    for subset in ("train", "val"):
        image, label = bench.file("images", subset), bench.file("labels", subset)
        image.with_name("1.png").unlink()
        label.with_name("2.png").unlink()
        image.with_name("extra.png").write_bytes(image.read_bytes())
    bench.save_labels(lambda label: np.full_like(label, 30))
    bench.file("images", "train").with_name("3.png").write_bytes(b"<html></html>")
    good = [bench.file(kind, "val").with_name("good.png") for kind in ("images", "labels")]
    for mode, path in zip(("RGB", "L"), good, strict=True):
        Image.new(mode, (64, 70)).save(path)
    bench.training(*skip)()
    assert [sample["image_id"] for sample in DatasetCatalog.get(train)] == ["4", "5"]
    said = bench.said()
    assert f"dataset {train}: left out 2 images without label: 2; extra" in said
    assert f"dataset {train}: left out 1 labels without image: 1" in said
    bad = bench.file("labels", "train")
    assert f"dataset {train}: left out 2 unusable files: {bad}: label 30 at (0,0)" in said
    content = json.loads((bench.output / "inference" / test / "metrics.json").read_text())
    assert content["images"] == 1 and content["left_out"] == {
        "images without label": 2, "labels without image": 1, "unusable files": 1
    }  # fmt: skip
    refused(bench.training(), f"DatasetError: dataset {test}: 2 images without label in")
    good[1].unlink()
    refused(
        bench.training(*skip),
        f"DatasetError: dataset {test}: found 0 usable samples (3 images without label, 1 labels w",
        "see tagclip validate",
    )


def test_two_class_lists_in_one_evaluation(bench: Bench) -> None:
    """Each test set is scored with its own names; a batch of both is refused."""
    first, other = bench.cfg.DATASETS.TEST[0], ["zebra", "cat", "tree", "dog", "road"]
    tree = tiny_tree(name="other5", splits={}, default_split="")
    for entry, name in zip(tree["classes"], other, strict=True):
        entry["name"] = name
    second = bench.register(tree, "val")
    bench.evaluation_on(first, second)()
    for dataset, names in ((first, NAMES), (second, other)):
        assert [entry["name"] for entry in bench.metrics(dataset)["classes"]] == names
    model = ZeroShotTrainer.build_model(bench.cfg).eval()
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    batch = [
        {"image": image, "height": 64, "width": 64, "vocabulary": each} for each in (first, second)
    ]
    refused(lambda: model(batch), "VocabularyError: batch of 2 inputs: found several", "tiny5", "o")
    with torch.no_grad():
        assert len(model(batch[1:])) == 1


def test_a_name_registered_twice(bench: Bench) -> None:
    """The same again does nothing; another dataset is refused, and the first one stays."""
    name = bench.register(tiny_tree())
    folders = [bench.root / kind / "train" for kind in ("images", "labels")]
    vocabulary = MetadataCatalog.get(name).vocabulary
    register_zero_shot_sem_seg(name, *folders, vocabulary, image_ext="png")
    before = DatasetCatalog.get(name)
    other = write_json(bench.root / "b.json", tiny_tree())
    others = [
        ((folders[0], folders[0], vocabulary), f"labels {folders[0]}, expected {folders[1]}"),
        ((*folders, other), f"class list {other}, expected {vocabulary}"),
    ]
    for arguments, differing in others:
        refused(
            lambda arguments=arguments: register_zero_shot_sem_seg(
                name, *arguments, image_ext="png"
            ),
            f"DatasetError: dataset name {name!r} is taken by another registration",
            differing, "choose another name",
        )  # fmt: skip
    assert DatasetCatalog.get(name) == before
    assert MetadataCatalog.get(name).vocabulary == vocabulary


def test_listing_many_images_opens_none(bench: Bench) -> None:
    """Listing asks nothing of single files; loaders keep their dicts as bytes."""
    count = 4000
    folders = [bench.root / kind / "train" for kind in ("images", "labels")]
    for folder in folders:
        folder.mkdir(parents=True)
        for index in range(count):
            # Empty: whoever reads one fails.
            (folder / f"{index}.png").touch()
    stat, asked = os.stat, []
    bench.patch.setattr(os, "stat", lambda path, *a, **k: asked.append(path) or stat(path, *a, **k))
    name = bench.cfg.DATASETS.TRAIN[0]
    loaders = [ZeroShotTrainer.build_train_loader(bench.cfg)]
    loaders.append(ZeroShotTrainer.build_test_loader(bench.cfg, name))
    bench.patch.undo()
    assert not [path for path in asked if str(path).endswith(".png")]
    del loaders
    before = sys.getallocatedblocks()
    loaders = [ZeroShotTrainer.build_train_loader(bench.cfg)]
    loaders.append(ZeroShotTrainer.build_test_loader(bench.cfg, name))
    # detectron2's test loader keeps one integer per image, a list of dicts five objects.
    assert sys.getallocatedblocks() - before < 1.5 * count
