"""tools/export_model.py --int8: what it writes and reports, what runs it, and mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.clip_files import fails, sha256
from helpers.tiny_export import ABSENT, WORDS, run_without_torch, save_run
from helpers.tiny_export import checkpoint as checkpoint
from helpers.tiny_export import clip_weights as clip_weights
from helpers.tiny_export import example as example
from helpers.tiny_export import tool as tool
from helpers.tiny_run import CLASSES, UNSEEN, VOID, changed, exit_of, write_tiny_dataset
from PIL import Image

from tagclip import TagCLIPPredictor
from tagclip.errors import ConfigError, DatasetError, TagCLIPError, VocabularyError
from tagclip.export.runtime.exported_model import ExportedModel
from tagclip.export.runtime.images import read_image
from tagclip.export.runtime.session import RUNTIMES

pytest.importorskip("onnxruntime")


@pytest.fixture
def dataset(tiny_cfg: CfgNode, tmp_path: Path) -> str:
    """Six images to calibrate with, three others with labels, which is the dataset's name."""
    write_tiny_dataset(tmp_path)
    return tiny_cfg.DATASETS.TEST[0]


def export(tool: ModuleType, checkpoint: Path, folder: Path, *options: object) -> dict:
    words = ["--weights", checkpoint, "--output", folder, "--int8", *options]
    return tool.main(tool.parse_args([*map(str, words)]))


def iou(pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """Percent of each class, pixel by pixel; nan without labels."""
    pairs, values = list(pairs), []
    for index in range(CLASSES):
        counted = [
            (found[true != VOID] == index, true[true != VOID] == index) for found, true in pairs
        ]
        both, either = (
            sum(f(*pair).sum() for pair in counted) for f in (np.logical_and, np.logical_or)
        )
        has_labels = any(true.any() for _, true in counted)
        values.append(100 * both / either if has_labels else np.nan)
    return values


@pytest.mark.parametrize("words", ["baked", pytest.param("input", marks=pytest.mark.slow)])
def test_report_and_file(
    tool: ModuleType,
    checkpoint: Path,
    dataset: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    words: str,
) -> None:
    """The report is a count pixel by pixel of what the written files and the model say."""
    folder, train = tmp_path / "export", tmp_path / "images" / "train"
    options = ["--words", words, "--format", "onnx", "--calibrate", train, "--report", dataset]
    recipe = export(tool, checkpoint, folder, *options)
    shown = capsys.readouterr().out
    assert recipe == json.loads((folder / "model.json").read_text())
    assert recipe["files"]["model_int8.onnx"]["sha256"] == sha256(folder / "model_int8.onnx")
    assert recipe["int8"]["calibration"]["images"] == 6
    report = recipe["int8"]["report"]
    predictor = TagCLIPPredictor.from_checkpoint(checkpoint)
    images = sorted((tmp_path / "images" / "val").iterdir())
    truth = [np.array(Image.open(tmp_path / "labels" / "val" / path.name)) for path in images]
    labels = {}
    for kind, file in (("float32", "model.onnx"), ("int8", "model_int8.onnx")):
        model = ExportedModel(folder, file=file)
        classes = model.read() if words == "input" else None
        labels[kind] = [model.label(read_image(path), classes) for path in images]
        expected = iou(zip(labels[kind], truth, strict=True))
        seen = [index for index in range(CLASSES) if index not in UNSEEN]
        for name, chosen in (
            ("mIoU", range(CLASSES)),
            ("mIoU-seen", seen),
            ("mIoU-unseen", UNSEEN),
        ):
            assert report[kind][name] == pytest.approx(np.nanmean([expected[i] for i in chosen]))
        assert f"{report[kind]['hIoU']:.2f}" in shown
    for path, found in zip(images, labels["float32"], strict=True):
        assert (found != predictor(path)["sem_seg_labels"].numpy()).mean() < 1e-3
    differing = [a != b for a, b in zip(*labels.values(), strict=True)]
    share = 100 * sum(map(np.sum, differing)) / sum(map(np.size, differing))
    assert report["images"] == 3 and report["dataset"] == dataset
    assert 0 < share < 10 and report["labels_changed"] == pytest.approx(share)
    assert f"int8 changes {share:.2f} % of the labels of 3 images" in shown

    again = export(tool, checkpoint, tmp_path / "again", *options)
    assert again["files"] == recipe["files"] and again["int8"] == recipe["int8"]


@pytest.mark.slow
def test_without_a_dataset_the_calibration_images_are_compared(
    tool: ModuleType, checkpoint: Path, dataset: str, tmp_path: Path
) -> None:
    images = sorted((tmp_path / "images" / "train").iterdir())
    options = ["--dynamic", "--vocab", WORDS, "--format", "onnx", "--calibrate"]
    first = export(tool, checkpoint, tmp_path / "a", *options, *images)
    assert first["int8"]["report"].keys() == {"images", "labels_changed"}
    assert first["int8"]["report"]["images"] == 6
    second = export(tool, checkpoint, tmp_path / "b", *options, *images[::-1], images[0])
    assert second["int8"]["calibration"] == first["int8"]["calibration"]
    assert second["files"] == first["files"]


@pytest.mark.slow
def test_run_onnx(
    tool: ModuleType, example: ModuleType, checkpoint: Path, dataset: str, tmp_path: Path
) -> None:
    """Each runtime runs where the other is not installed."""
    folder, train, out = tmp_path / "export", tmp_path / "images" / "train", tmp_path / "out.png"
    export(tool, checkpoint, folder, "--words", "input", "--calibrate", train)
    image = train / "0.png"
    words = ["--words", "cat, dog, sky"]
    expected = None
    for runtime in RUNTIMES:
        pytest.importorskip(runtime)
        absent = (*ABSENT, *(set(RUNTIMES) - {runtime}))
        for options in ([], ["--int8"]):
            command = [folder, image, out, *words, *options, "--runtime", runtime]
            run_without_torch(*command, absent=absent)
            labels = np.array(Image.open(out))
            expected = labels if expected is None else expected
            assert (labels != expected).mean() < (0.1 if options else 1e-3)
    assert example.parse_args(["a", "b", "c"]).runtime in RUNTIMES
    for runtime in RUNTIMES:
        assert example.parse_args(["a", "b", "c", "--runtime", runtime])


@pytest.mark.slow
def test_mistakes(tool: ModuleType, checkpoint: Path, dataset: str, tmp_path: Path) -> None:
    folder, images = tmp_path / "export", tmp_path / "images" / "train"

    def mistake(error: type[TagCLIPError], parts: list[object], *options: object) -> None:
        words = ["--weights", checkpoint, "--output", folder, "--format", "onnx", *options]
        fails(error, lambda: tool.main(tool.parse_args([*map(str, words)])), *parts)
        assert not folder.exists()

    mistake(ConfigError, ["--int8", "no images", "--calibrate"], "--int8")
    mistake(ConfigError, ["--calibrate", "--int8"], "--calibrate", images)
    mistake(ConfigError, ["--report", "--int8"], "--report", dataset)
    int8 = ["--int8", "--calibrate"]
    mistake(
        ConfigError, ["--int8", "torchscript", "onnx"], *int8, images, "--format", "torchscript"
    )
    mistake(ConfigError, ["--calibrate", "nowhere"], *int8, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    mistake(ConfigError, ["--calibrate", "no image in this folder"], *int8, tmp_path / "empty")
    (tmp_path / "bad.png").write_bytes((images / "0.png").read_bytes()[:200])
    mistake(DatasetError, ["bad.png"], *int8, images, tmp_path / "bad.png")
    Image.new("RGB", (200, 65)).save(tmp_path / "thin.png")
    small = ["--size", "96x96"]
    parts = ["thin.png", "64x197", "96x96", "--dynamic"]
    mistake(ConfigError, parts, *int8, tmp_path / "thin.png", *small)
    mistake(ConfigError, ["--report tiny", "no such dataset"], *int8, images, "--report", "tiny")
    other = ["--report", dataset, "--vocab", WORDS]
    mistake(VocabularyError, [dataset, "5 classes", "--vocab-from-dataset"], *int8, images, *other)


def test_the_policy_for_bad_samples_is_of_the_report_alone(
    tool: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    line = ["--output", "out", "DATASETS.ON_BAD_SAMPLE", "skip"]
    assert tool.parse_args([*line, "--report", "mine"]).opts == line[2:]
    assert exit_of(tool.parse_args, line) == 2
    assert "DATASETS.ON_BAD_SAMPLE: does nothing without --report" in capsys.readouterr().err


def test_a_folder_without_int8(
    tool: ModuleType, example: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    options = ["--weights", checkpoint, "--output", tmp_path / "export", "--format", "onnx"]
    tool.main(tool.parse_args([*map(str, options), "--vocab", WORDS]))
    image, out = tmp_path / "a.png", tmp_path / "out.png"
    Image.new("RGB", (80, 80)).save(image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["x", *map(str, (tmp_path / "export", image, out, "--int8"))])
        line = exit_of(example.invoke_main)
    assert "found no model_int8.onnx" in line and "--int8" in line and not out.exists()


def test_report_on_folders_of_ones_own(
    tool: ModuleType,
    tiny_cfg: CfgNode,
    tiny_vocabulary_json: str,
    clip_weights: str,
    dataset: str,
    tmp_path: Path,
) -> None:
    """The checkpoint carries the class list of what DATASETS.FOLDER_DATASETS describes."""
    name = f"own_{tmp_path.name}"
    folders = {kind: str(tmp_path / kind / "val") for kind in ("images", "labels")}
    entry = {"name": name, "vocabulary": tiny_vocabulary_json, **folders}
    opts = ["MODEL.CLIP.PRETRAINED", clip_weights, "DATASETS.FOLDER_DATASETS", [entry]]
    datasets = ["DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,)]
    weights = save_run(changed(tiny_cfg, *opts, *datasets))
    # As in another process.
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove(name)
    options = ["--format", "onnx", "--calibrate", folders["images"], "--report", name]
    recipe = export(tool, weights, tmp_path / "export", *options)
    assert recipe["int8"]["report"]["dataset"] == name
    assert recipe["int8"]["report"]["int8"]["mIoU"] > 0
