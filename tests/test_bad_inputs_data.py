"""Bad datasets and labels: rows 1 to 18 of the table of bad inputs, one case or more each."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_input_tools import (
    NO_TEST,
    DataBench,
    assert_read_as,
    problems,
    tiny_tree,
)
from bad_rows import Rows, files_below, refused, refused_as_process
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage
from faulty_dataset import set_orientation
from miniature_trees import (
    benchmarks_at,
    make_voc,
    run_script,
    script_error,
    write_gray,
    write_palette,
)
from PIL import Image
from tiny_run import VOID, changed, own_loggers, train_labels
from toy_dataset import vocabulary_tree, write_json
from toy_evaluation import NAMES as TOY_NAMES
from toy_evaluation import UNSEEN as TOY_UNSEEN
from toy_evaluation import Toy

from tagclip import ZeroShotDatasetMapper, ZeroShotTrainer, register_zero_shot_sem_seg
from tagclip.data.datasets.builtin import vocabulary_json

ROWS = Rows()
TRAIN_VOC = ("DATASETS.TRAIN", "('voc2012_train',)", *NO_TEST)
PREPARE_VOC = "run: python datasets/prepare_voc.py"


@pytest.fixture
def bench(
    tiny_cfg: CfgNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[DataBench]:
    with own_loggers(), benchmarks_at(tmp_path / "data"):
        yield DataBench(tmp_path, tiny_cfg, monkeypatch, capsys, caplog)


@ROWS
def row01_no_data(bench: DataBench) -> None:
    """At build time: the path looked for, the variable, the command that makes it."""
    folder = bench.root / "data" / "VOCdevkit" / "VOC2012" / "JPEGImages"
    bench.patch.delenv("DETECTRON2_DATASETS", raising=False)
    parts = ("DatasetError: dataset voc2012_train: no image folder", folder, PREPARE_VOC)
    refused(bench.training(*TRAIN_VOC), *parts, "(DETECTRON2_DATASETS is not set)")
    bench.patch.setenv("DETECTRON2_DATASETS", "/data")
    refused(bench.training(*TRAIN_VOC), *parts, "(DETECTRON2_DATASETS is '/data')")
    refused(lambda: bench.validate("voc2012_train"), *parts)
    assert not bench.output.exists()


@ROWS
def row01_no_raw_data(bench: DataBench) -> None:
    """The prepare command says what to download."""
    line = script_error("prepare_voc", bench.root / "empty")
    assert str(bench.root / "empty" / "VOCdevkit" / "VOC2012") in line
    assert "datasets/README.md" in line and not (bench.root / "empty").exists()


@ROWS
def row01_as_a_process(bench: DataBench) -> None:
    bench.patch.setenv("DETECTRON2_DATASETS", str(bench.root / "nowhere"))
    config = next(Path(__file__).resolve().parents[1].glob("configs/voc/tagclip*_inductive.yaml"))
    refused_as_process(
        bench.root,
        ("train_net.py", "--config-file", config, *TRAIN_VOC),
        "DatasetError: dataset voc2012_train: no image folder",
        bench.root / "nowhere" / "VOCdevkit",
        PREPARE_VOC,
    )
    assert not (bench.root / "output").exists()


@ROWS
def row02_not_converted(bench: DataBench) -> None:
    """As without data, naming the command; after it the dataset is there."""
    make_voc(bench.root / "data")
    before = files_below(bench.root / "data")
    parts = ("DatasetError: dataset voc2012_train: no label folder", bench.root, PREPARE_VOC)
    refused(bench.training(*TRAIN_VOC), *parts)
    assert files_below(bench.root / "data") == before and not bench.output.exists()
    run_script("prepare_voc", bench.root / "data")
    assert len(DatasetCatalog.get("voc2012_train")) == 5


@ROWS
def row03_lonely_files(bench: DataBench) -> None:
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
            "such as extra0, extra1, extra2, extra3, extra4; add what is missing or remove them",
        )
        code, reports, _ = bench.validate(name)
        found = problems(reports[name])[f"lonely_{what[:-1]}"]
        assert (code, found["count"], len(found["examples"])) == (1, 7, 5)
        assert not bench.output.exists() and all(path.exists() for path in extra)
        for path in extra:
            path.unlink()


@ROWS
def row03_lonely_files_skipped(bench: DataBench) -> None:
    """Training and evaluation go on with the rest; totals in the log and in the result."""
    cfg = bench.cfg.clone()
    cfg.DATASETS.ON_BAD_SAMPLE = "skip"
    train, test = cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]
    bench.save_labels(label_with_30)
    for subset in ("train", "val"):
        image, label = bench.file("images", subset), bench.file("labels", subset)
        image.with_name("1.png").unlink()
        label.with_name("2.png").unlink()
        image.with_name("extra.png").write_bytes(image.read_bytes())
    bench.file("images", "train").with_name("3.png").write_bytes(b"<html></html>")
    Image.fromarray(bench.label("val")[:, ::-1]).save(bench.file("labels", "val"))
    label = bench.file("labels", "val").with_name("new.png")
    Image.new("L", (64, 70)).save(label)
    Image.new("RGB", (64, 70)).save(bench.file("images", "val").with_name("new.png"))
    ZeroShotTrainer.check(cfg, weights="", train=True)
    stream = ZeroShotTrainer.build_train_loader(cfg)
    names = {Path(stream.source(position)["file_name"]).name for position in range(12)}
    assert names == {"4.png", "5.png"}
    result = ZeroShotTrainer.test(cfg, ZeroShotTrainer.build_model(cfg).eval())
    assert "mIoU" in result["sem_seg"]
    said = bench.said()
    assert f"dataset {train}: left out 2 images without label: 2, extra" in said
    assert f"dataset {train}: left out 1 labels without image: 1" in said
    assert f"dataset {train}: left out 2 unusable files: {bench.file('labels', 'train')}: l" in said
    path = bench.output / "inference" / test / "metrics.json"
    content = json.loads(path.read_text())
    assert content["images"] == 1 and content["left_out"] == {
        "images without label": 2, "labels without image": 1, "unusable files": 1
    }  # fmt: skip
    label.unlink()
    ZeroShotTrainer.check(changed(cfg, *NO_TEST), weights="", train=True)
    cfg.DATASETS.ON_BAD_SAMPLE = "raise"
    refused(lambda: ZeroShotTrainer.check(cfg, weights="", train=True), "images without label in")
    cfg.DATASETS.ON_BAD_SAMPLE = "skip"
    refused(
        lambda: ZeroShotTrainer.check(cfg, weights="", train=True),
        f"DatasetError: dataset {test}: found 0 usable samples (3 images without label, 1 labels w",
        "see tools/validate_dataset.py",
    )


def label_with_30(label: np.ndarray) -> np.ndarray:
    changed_label = label.copy()
    changed_label[7, 5] = 30
    return changed_label


@ROWS
def row04_label_out_of_range(bench: DataBench) -> None:
    """30 with 20 classes: file, place, class ids and ignore value."""
    bench.save_labels(label_with_30)
    bench.refused_label("label 30 at (5,7), vocabulary tiny5 has 0..4 and ignore 255; run the")
    line = refused(bench.training_on(bench.register(vocabulary_json("voc20"))))
    expected = "label 30 at (5,7), vocabulary voc20 has 0..19 and ignore 255; run the dataset's"
    assert line.startswith(f"DatasetError: {bench.file('labels', 'train')}: {expected}")


@ROWS
def row04_label_out_of_range_in_raw_data(bench: DataBench) -> None:
    """Nothing of a conversion that stops passes for a dataset."""
    root = bench.root / "data"
    raw = make_voc(root)["val"]
    stem, label = next(iter(raw.items()))
    path = root / "VOCdevkit" / "VOC2012" / "SegmentationClass" / f"{stem}.png"
    write_gray(path, label_with_30(label))
    line = script_error("prepare_voc", root, "--only", "voc2012_val")
    assert line.startswith(f"DatasetError: {path}: ") and "30 at (5,7)" in line
    bad = {"DATASETS.TRAIN": "('voc2012_val',)", "DATASETS.TEST": "()"}
    refused(bench.training(*(x for pair in bad.items() for x in pair)), PREPARE_VOC)


@ROWS
def row05_another_size(bench: DataBench) -> None:
    """Both sizes, in training, evaluation and validation."""
    bench.save_labels(lambda label: label[:-1, :-2])
    for subset, call in (("train", bench.training()), ("val", bench.evaluation(bench.weights))):
        height, width = bench.label(subset).shape
        refused(
            call,
            f"DatasetError: {bench.file('labels', subset)}: label is {width}x{height} (width x hei",
            f"its image is {width + 2}x{height + 1}; pair each image with its own label",
        )
        name = (bench.cfg.DATASETS.TRAIN if subset == "train" else bench.cfg.DATASETS.TEST)[0]
        code, reports, _ = bench.validate(name)
        (example,) = problems(reports[name])["size"]["examples"]
        assert code == 1
        assert example.endswith(f"label {width}x{height}, image {width + 2}x{height + 1}")
    assert not bench.results()


@ROWS
def row06_swapped_sides(bench: DataBench) -> None:
    """As many pixels, but the image is EXIF-rotated and its label is not."""
    for subset in ("train", "val"):
        height, width = bench.label(subset).shape
        assert height != width
        set_orientation(bench.file("images", subset), 6)
    text = "rotate the label as the image's EXIF tag says, or remove the tag"
    bench.refused_label("(width x height), its image is", text)
    name = bench.cfg.DATASETS.TRAIN[0]
    code, reports, _ = bench.validate(name)
    found = problems(reports[name])["size_swapped"]
    assert code == 1 and "EXIF orientation 6" in found["examples"][0] and "EXIF" in found["advice"]


def all_labels(bench: DataBench) -> dict[Path, np.ndarray]:
    """Every label file of the training set."""
    _ = bench.config
    return {path: np.array(Image.open(path)) for path in train_labels(bench.root)}


@ROWS
def row07_palette(bench: DataBench) -> None:
    """Indices, not brightnesses, in training and evaluation."""
    labels = all_labels(bench)
    for path, label in labels.items():
        write_palette(path, label)
        assert Image.open(path).mode == "P"
        assert (np.array(Image.open(path).convert("L")) != label).any()
    assert_read_as(bench.root, bench.cfg.DATASETS.TRAIN[0], list(labels.values()))


@ROWS
def row08_rgb_label(bench: DataBench) -> None:
    bench.save_labels(lambda label: np.stack([label] * 3, axis=2))
    bench.refused_label("label must be single-channel with", "; found RGB; run the dataset's prep")
    name = bench.cfg.DATASETS.TRAIN[0]
    code, reports, _ = bench.validate(name)
    found = problems(reports[name])["label_channels"]
    assert (code, found["count"]) == (1, 1) and "RGB" in found["examples"][0] and found["advice"]


@ROWS
def row09_sixteen_bits(bench: DataBench) -> None:
    """Values above 255 are what they are, in training and evaluation."""
    ids, labels = [0, 300, 40000, 2, 256], all_labels(bench)
    table = np.full(256, 65535, np.uint16)
    table[: len(ids)] = ids
    for path, label in labels.items():
        Image.fromarray(table[label]).save(path)
    tree = tiny_tree(ignore_label=65535)
    for entry, value in zip(tree["classes"], ids, strict=True):
        entry["id"] = value
    assert_read_as(bench.root, bench.register(tree), list(labels.values()))


@ROWS
def row10_background_left_in(bench: DataBench) -> None:
    """0..20 for 20 classes: the message counts the values and asks about reduce_zero_label."""
    for path, label in all_labels(bench).items():
        new = np.zeros_like(label)
        new[:1, :21] = np.arange(21)
        Image.fromarray(new).save(path)
    name = bench.register(vocabulary_json("voc20"))
    line = refused(bench.training_on(name), "label 20 at (20,0), vocabulary voc20 has 0..19 and")
    assert "21 distinct values, 0 dominates" in line and "reduce_zero_label" in line
    own = bench.register(vocabulary_tree([f"class {index}" for index in range(20)]))
    for dataset, title in (
        (name, "raw ids of voc2012 (1..20) instead of those of voc20 (0..19): the labels are not"),
        (own, "background left in: 0 dominates and 20 is one id too many"),
    ):
        code, reports, said = bench.validate(dataset)
        assert code == 1 and title in problems(reports[dataset])["diagnosis"]["title"]
        assert title in said


@ROWS
def row11_other_ignore_value_is_found(bench: DataBench) -> None:
    """The validator counts every value and says what is wrong."""
    labels = all_labels(bench)
    for path, label in labels.items():
        Image.fromarray(np.where(label == VOID, 254, label).astype(np.uint8)).save(path)
    name = bench.cfg.DATASETS.TRAIN[0]
    code, reports, said = bench.validate(name)
    ignored = sum(int((label == VOID).sum()) for label in labels.values())
    images = sum(bool((label == VOID).any()) for label in labels.values())
    assert code == 1 and "254 instead of 255 for unlabelled pixels" in said
    assert reports[name]["unknown"] == [{"value": 254, "pixels": ignored, "images": images}]
    assert '"ignore_label": 254 in the vocabulary json' in said
    for entry in reports[name]["classes"]:
        pixels = sum(int((label == entry["id"]).sum()) for label in labels.values())
        assert entry["pixels"] == pixels


@ROWS
def row11_other_ignore_value_is_honoured(bench: DataBench) -> None:
    """254, and 0 before ids from 1, mean ignored in training, evaluation and validation."""
    labels = all_labels(bench)
    for ignore, shift in ((254, 0), (0, 1)):
        for path, label in labels.items():
            new = np.where(label == VOID, ignore, label + np.uint8(shift))
            Image.fromarray(new.astype(np.uint8)).save(path)
        tree = tiny_tree(ignore_label=ignore)
        for entry in tree["classes"]:
            entry["id"] += shift
        name = bench.register(tree)
        assert MetadataCatalog.get(name).ignore_label == ignore
        assert_read_as(bench.root, name, list(labels.values()))
        code, reports, _ = bench.validate(name)
        assert code == 0 and reports[name]["ignored"]["value"] == ignore


@ROWS
def row12_no_annotated_pixel(bench: DataBench) -> None:
    _ = bench.config
    for path in (bench.root / "labels" / "val").iterdir():
        with Image.open(path) as image:
            label = np.full_like(np.array(image), VOID)
        Image.fromarray(label).save(path)
    name = bench.cfg.DATASETS.TEST[0]
    text = f"DatasetError: dataset {name}: found 0 valid pixels in 3 images, expected labelled ones"
    refused(bench.evaluation(bench.weights), text, "check its label files and ignore_label")
    assert not bench.results()


@ROWS
def row13_ignored_training_image(bench: DataBench) -> None:
    """Finite, connected losses: Dice 0, the others 0 unless ignored pixels are negatives."""
    bench.save_labels(lambda label: np.full_like(label, VOID))
    name = bench.cfg.DATASETS.TRAIN[0]
    for as_negative in (True, False):
        cfg = changed(bench.cfg, "MODEL.TAGCLIP.LOSS.IGNORE_AS_NEGATIVE", as_negative)
        sample = ZeroShotDatasetMapper(cfg, is_train=True)(DatasetCatalog.get(name)[0])
        assert (sample["sem_seg"] == VOID).all()
        model = ZeroShotTrainer.build_model(cfg).train()
        with EventStorage():
            losses = model([sample])
        assert losses["loss_dice"] == 0
        for term in ("loss_mask", "loss_trusty"):
            assert losses[term] > 0 if as_negative else losses[term] == 0
        sum(losses.values()).backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert all(torch.isfinite(parameter.grad).all() for parameter in trained)
        assert any(parameter.grad.any() for parameter in trained) == as_negative
    code, reports, _ = bench.validate(name)
    assert (code, problems(reports[name])["all_ignored"]["count"]) == (0, 1)


def brute_force_ious(toy: Toy) -> dict[str, float]:
    """IoU in percent of the classes that have true pixels, counted one by one."""
    pixels = [(true, predicted) for true, predicted, _ in toy.pixels()]
    ious = {}
    for name in {true for true, _ in pixels}:
        hits = sum(pair == (name, name) for pair in pixels)
        ious[name] = 100 * hits / sum(name in pair for pair in pixels)
    return ious


@ROWS
def row14_class_without_truth(bench: DataBench) -> None:
    """Predicted but never true: out of the mean, and listed."""
    toy = Toy(bench.root / "toy", f"toy14_{bench.root.name}")
    ious = brute_force_ious(toy)
    assert len(ious) == 4 and any(predicted == "sofa" for _, predicted, _ in toy.pixels())
    bench.caplog.set_level("INFO")
    result = toy.run(toy.evaluator(), 0, 1, 2).evaluate()["sem_seg"]
    assert result["mIoU"] == pytest.approx(np.mean(list(ious.values())))
    said = bench.said()
    assert "IoU undefined (no labelled pixel) for: sofa" in said
    (row,) = [line for line in said.splitlines() if line.startswith("mIoU ")]
    assert row.split() == ["mIoU", f"{result['mIoU']:.2f}", "4"]


@ROWS
def row15_mean_with_a_nan(bench: DataBench) -> None:
    """The seen mean is that of the seen classes that are defined; their number is shown."""
    toy = Toy(bench.root / "toy", f"toy15_{bench.root.name}")
    ious = brute_force_ious(toy)
    bench.caplog.set_level("INFO")
    result = toy.run(toy.evaluator(), 0, 1, 2).evaluate()["sem_seg"]
    seen = [value for name, value in ious.items() if name not in TOY_UNSEEN]
    assert len(seen) == len(TOY_NAMES) - len(TOY_UNSEEN) - 1
    assert result["mIoU-seen"] == pytest.approx(np.mean(seen))
    (row,) = [line for line in bench.said().splitlines() if line.startswith("mIoU-seen")]
    assert row.split() == ["mIoU-seen", f"{result['mIoU-seen']:.2f}", "2"]


@ROWS
def row16_two_class_lists(bench: DataBench) -> None:
    """Each test set is scored with its own names; a batch of both is refused."""
    first, other = bench.cfg.DATASETS.TEST[0], ["zebra", "cat", "tree", "dog", "road"]
    tree = tiny_tree(name="other5", splits={}, default_split="")
    for entry, name in zip(tree["classes"], other, strict=True):
        entry["name"] = name
    second = bench.register(tree, "val")
    bench.evaluation_on(first, second)()
    for dataset, names in ((first, ["cat", "dog", "grass", "sky", "sofa"]), (second, other)):
        assert [entry["name"] for entry in bench.metrics(dataset)["classes"]] == names
    model = ZeroShotTrainer.build_model(bench.cfg).eval()
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    batch = [
        {"image": image, "height": 64, "width": 64, "vocabulary": each} for each in (first, second)
    ]
    refused(lambda: model(batch), "VocabularyError: batch of 2 inputs: found several", "tiny5", "o")
    with torch.no_grad():
        assert len(model(batch[1:])) == 1


@ROWS
def row17_registered_twice(bench: DataBench) -> None:
    """The same again does nothing; another dataset is refused, and the first one stays."""
    name = bench.register(tiny_tree())
    folders = [bench.root / kind / "train" for kind in ("images", "labels")]
    vocabulary = MetadataCatalog.get(name).vocabulary
    register_zero_shot_sem_seg(name, *folders, vocabulary, image_ext="png")
    before = DatasetCatalog.get(name)
    others = {
        "labels": (folders[0], folders[0], vocabulary),
        "vocabulary": (*folders, write_json(bench.root / "b.json", tiny_tree())),
    }
    for arguments in others.values():
        refused(
            lambda arguments=arguments: register_zero_shot_sem_seg(
                name, *arguments, image_ext="png"
            ),
            f"DatasetError: dataset name {name!r} is taken by another registration",
            folders[0], vocabulary, "choose another name",
        )  # fmt: skip
    assert DatasetCatalog.get(name) == before
    assert MetadataCatalog.get(name).vocabulary == vocabulary


@ROWS
def row18_a_million_images(bench: DataBench) -> None:
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


def test_every_row_has_a_case() -> None:
    assert ROWS.numbers == set(range(1, 19))


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str, bench: DataBench) -> None:
    ROWS[name](bench)
