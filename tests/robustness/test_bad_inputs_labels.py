"""Bad labels: values, sizes and file forms, ignore values, classes without truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage
from helpers.bench import NO_TEST, Bench, problems, refused
from helpers.faulty_dataset import set_orientation
from helpers.miniature_trees import make_voc, script_error, write_gray, write_palette
from helpers.read_as import assert_read_as
from helpers.tiny_run import VOID, changed, tiny_tree, train_labels
from helpers.toy_dataset import vocabulary_tree
from helpers.toy_evaluation import NAMES as TOY_NAMES
from helpers.toy_evaluation import UNSEEN as TOY_UNSEEN
from helpers.toy_evaluation import Toy
from PIL import Image

from tagclip import ZeroShotDatasetMapper, ZeroShotTrainer
from tagclip.data.datasets.builtin import vocabulary_json

pytestmark = pytest.mark.usefixtures("benchmarks")


def label_with_30(label: np.ndarray) -> np.ndarray:
    changed_label = label.copy()
    changed_label[7, 5] = 30
    return changed_label


def test_label_out_of_range(bench: Bench) -> None:
    """30 with 20 classes: file, place, class ids and ignore value."""
    bench.save_labels(label_with_30)
    bench.refused_label("label 30 at (5,7), vocabulary tiny5 has 0..4 and ignore 255; run the")
    line = refused(bench.training_on(bench.register(vocabulary_json("voc20"))))
    expected = "label 30 at (5,7), vocabulary voc20 has 0..19 and ignore 255; run the dataset's"
    assert line.startswith(f"DatasetError: {bench.file('labels', 'train')}: {expected}")


def test_label_out_of_range_in_raw_data(bench: Bench) -> None:
    """Nothing of a conversion that stops passes for a dataset."""
    root = bench.root / "data"
    raw = make_voc(root)["val"]
    stem, label = next(iter(raw.items()))
    path = root / "VOCdevkit" / "VOC2012" / "SegmentationClass" / f"{stem}.png"
    write_gray(path, label_with_30(label))
    line = script_error("prepare_voc", root, "--only", "voc2012_val")
    assert line.startswith(f"DatasetError: {path}: ") and "30 at (5,7)" in line
    opts = ("DATASETS.TRAIN", "('voc2012_val',)", *NO_TEST)
    refused(bench.training(*opts), "run: tagclip prepare voc")


def test_label_of_another_size(bench: Bench) -> None:
    """Both sizes, in training, evaluation and validation."""
    bench.save_labels(lambda label: label[:-1, :-2])
    trying = bench.new_training(), bench.evaluation(bench.weights)
    for subset, call in zip(("train", "val"), trying, strict=True):
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


def test_label_with_swapped_sides(bench: Bench) -> None:
    """As many pixels, but the image is EXIF-rotated and its label is not."""
    for subset in ("train", "val"):
        height, width = bench.label(subset).shape
        assert height != width
        set_orientation(bench.file("images", subset), 6)
    text = "rotate the label as the image's EXIF tag says"
    bench.refused_label("(width x height), its image is", text)
    name = bench.cfg.DATASETS.TRAIN[0]
    code, reports, _ = bench.validate(name)
    found = problems(reports[name])["size_swapped"]
    assert code == 1 and "EXIF orientation 6" in found["examples"][0] and "EXIF" in found["advice"]


def all_labels(bench: Bench) -> dict[Path, np.ndarray]:
    """Every label file of the training set."""
    _ = bench.config
    return {path: np.array(Image.open(path)) for path in train_labels(bench.root)}


def test_palette_labels_are_read_as_indices(bench: Bench) -> None:
    """Indices, not brightnesses, in training and evaluation."""
    labels = all_labels(bench)
    for path, label in labels.items():
        write_palette(path, label)
        assert Image.open(path).mode == "P"
        assert (np.array(Image.open(path).convert("L")) != label).any()
    assert_read_as(bench.root, bench.cfg.DATASETS.TRAIN[0], list(labels.values()))


def test_rgb_label(bench: Bench) -> None:
    """Colours, although the class list has none."""
    bench.save_labels(lambda label: np.stack([label, label // 2, label], axis=2))
    bench.refused_label("label file has colours, vocabulary", 'give every class its "color"')
    name = bench.cfg.DATASETS.TRAIN[0]
    code, reports, _ = bench.validate(name)
    found = problems(reports[name])["label_channels"]
    assert (
        (code, found["count"]) == (1, 1) and "colours" in found["examples"][0] and found["advice"]
    )


def test_labels_in_the_colours_of_the_class_list(bench: Bench) -> None:
    """Read as they are, in training and evaluation; an unknown colour is named."""
    labels, colors = all_labels(bench), np.zeros((256, 3), np.uint8)
    colors[:5] = [(10 * index, 200, 7) for index in range(5)]
    for path, label in labels.items():
        Image.fromarray(colors[label]).save(path)
    tree = tiny_tree(ignore_color=[0, 0, 0])
    for entry, color in zip(tree["classes"], colors.tolist(), strict=False):
        entry["color"] = color
    name = bench.register(tree)
    assert_read_as(bench.root, name, list(labels.values()))
    code, reports, _ = bench.validate(name)
    assert code == 0 and reports[name]["label_modes"] == {"RGB": len(labels)}
    path = next(iter(labels))
    pixels = np.array(Image.open(path))
    pixels[0, 0] = (1, 200, 7)
    Image.fromarray(pixels).save(path)
    parts = "1 unknown colour: [1, 200, 7] (1 pixels, nearest is [0, 200, 7] of ", '"ignore_color"'
    refused(bench.training_on(name), str(path), *parts)
    code, reports, _ = bench.validate(name)
    assert code == 1 and problems(reports[name])["label_channels"]["count"] == 1


def test_masks_of_0_and_255(bench: Bench) -> None:
    """Training refuses them and names the lines of the json; with these it goes on."""
    labels = all_labels(bench)
    for path, label in labels.items():
        Image.fromarray(np.where(label == 0, 0, 255).astype(np.uint8)).save(path)
    tree = tiny_tree(classes=tiny_tree()["classes"][:2])
    del tree["default_split"], tree["splits"]
    supervised = ("DATASETS.ZERO_SHOT.SETTING", "supervised", "MODEL.TAGCLIP.TRUSTY.ENABLED", False)
    second = tree["classes"][1]["name"]
    line = f'"ids": [1, 255] for {second!r} and "ignore_label": 254'
    before = bench.checkpoints()
    refused(bench.training_on(bench.register(tree), *supervised), str(next(iter(labels))), line)
    assert bench.checkpoints() == before
    tree["classes"][1] = {"ids": [1, 255], "name": second}
    name = bench.register(tree | {"ignore_label": 254})
    bench.training_on(name, *supervised)()
    assert bench.checkpoints() > before


def test_labels_of_sixteen_bits(bench: Bench) -> None:
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


def test_background_left_in(bench: Bench) -> None:
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


def test_other_ignore_value_is_found(bench: Bench) -> None:
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
    assert '"ignore_label": [255, 254] in the vocabulary json' in said
    for entry in reports[name]["classes"]:
        pixels = sum(int((label == entry["id"]).sum()) for label in labels.values())
        assert entry["pixels"] == pixels


def test_other_ignore_value_is_honoured(bench: Bench) -> None:
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


def test_evaluation_without_an_annotated_pixel(bench: Bench) -> None:
    _ = bench.config
    for path in (bench.root / "labels" / "val").iterdir():
        with Image.open(path) as image:
            label = np.full_like(np.array(image), VOID)
        Image.fromarray(label).save(path)
    name = bench.cfg.DATASETS.TEST[0]
    text = f"DatasetError: dataset {name}: found 0 valid pixels in 3 images, expected labelled ones"
    refused(bench.evaluation(bench.weights), text, "check its label files and ignore_label")
    assert not bench.results()


def test_training_image_that_is_all_ignored(bench: Bench) -> None:
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


def test_class_without_a_true_pixel(bench: Bench) -> None:
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
    assert row.split() == ["mIoU", f"{result['mIoU']:.2f}", "4", "of", "5"]


def test_mean_over_an_undefined_class(bench: Bench) -> None:
    """The seen mean is that of the seen classes that are defined; their number is shown."""
    toy = Toy(bench.root / "toy", f"toy15_{bench.root.name}")
    ious = brute_force_ious(toy)
    bench.caplog.set_level("INFO")
    result = toy.run(toy.evaluator(), 0, 1, 2).evaluate()["sem_seg"]
    seen = [value for name, value in ious.items() if name not in TOY_UNSEEN]
    assert len(seen) == len(TOY_NAMES) - len(TOY_UNSEEN) - 1
    assert result["mIoU-seen"] == pytest.approx(np.mean(seen))
    (row,) = [line for line in bench.said().splitlines() if line.startswith("mIoU-seen ")]
    assert row.split() == ["mIoU-seen", f"{result['mIoU-seen']:.2f}", "2", "of", "3"]
