"""tools/train_net.py: every mistake in a config or a dataset is one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_run import exit_of, run_arguments, tiny_tree, train_labels
from PIL import Image

from tagclip import register_zero_shot_sem_seg
from tagclip.utils.cli import run_tool

Spoil = Callable[[Path], tuple[Any, ...]]


def with_vocabulary(root: Path, **changes: Any) -> tuple[Any, ...]:
    """Register the training set with a changed vocabulary; return the options that name it."""
    path = root / "vocabulary.json"
    path.write_text(json.dumps(tiny_tree(**changes)))
    name = f"spoiled_{root.name}"
    folders = {f"{kind}_root": str(root / kind) for kind in ("image", "sem_seg")}
    register_zero_shot_sem_seg(name, **folders, vocabulary_json=str(path), image_ext="png")
    return ("DATASETS.TRAIN", f"('{name}',)")


def missing_folder(root: Path) -> tuple[Any, ...]:
    (root / "images" / "train").rename(root / "elsewhere")
    return ()


def corrupt_clip(root: Path) -> tuple[Any, ...]:
    path = root / "clip.safetensors"
    path.write_bytes(b"half a file")
    return ("MODEL.CLIP.PRETRAINED", path)


def corrupt_checkpoint(root: Path) -> tuple[Any, ...]:
    path = root / "w.pth"
    torch.save({"model": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:3000])
    return ("MODEL.WEIGHTS", path)


def option(*opts: Any) -> Spoil:
    return lambda root: opts


# What the line begins with; "..." stands for anything.
MISTAKES: dict[str, tuple[Spoil, str]] = {
    "unknown key": (
        option("SOLVER.BASE_LRR", 1),
        "ConfigError: command line: unknown config key SOLVER.BASE_LRR; did you mean SOLVER.BASE_L",
    ),
    "key without value": (option("SEED"), "ConfigError: command line: found 1 word after"),
    "value of another type": (option("SOLVER.MAX_ITER", "many"), "ConfigError: command line: "),
    "missing folder": (
        missing_folder,
        "DatasetError: dataset tiny_train...: no image folder /.../images/train; check the path",
    ),
    "unknown dataset": (
        option("DATASETS.TRAIN", "('nowhere',)"),
        "DatasetError: dataset 'nowhere' is not registered; check DATASETS.TRAIN and DATASETS.TEST"
        ", use register_zero_shot_sem_seg, or name its project",
    ),
    "unknown test dataset": (
        option("DATASETS.TEST", "('voc2012_vall',)"),
        "DatasetError: dataset 'voc2012_vall' is not registered; did you mean voc2012_val?; check "
        "DATASETS.TRAIN and DATASETS.TEST",
    ),
    "test dataset of another task": (
        option("DATASETS.TEST", "('coco_2017_val',)"),
        "DatasetError: dataset 'coco_2017_val' is registered without a vocabulary; check DATASETS.",
    ),
    "missing CLIP": (
        option("MODEL.CLIP.PRETRAINED", "/nowhere/clip.pt"),
        "CheckpointError: /nowhere/clip.pt: no such",
    ),
    "corrupt CLIP": (corrupt_clip, "CheckpointError: /.../clip.safetensors: "),
    "missing CLIP json": (
        option("MODEL.CLIP.NAME", "/no/clip.json"),
        "ConfigError: .../no/clip.json",
    ),
    "class in no vocabulary": (
        lambda root: with_vocabulary(root, splits={"zs": {"unseen": ["dog", "zebra"]}}),
        "VocabularyError: /.../vocabulary.json: ...'zebra'",
    ),
    "seen and unseen": (
        lambda root: with_vocabulary(
            root, splits={"zs": {"seen": ["cat", "grass", "sofa", "sky"], "unseen": ["dog", "sky"]}}
        ),
        "VocabularyError: /.../vocabulary.json: ...'sky'",
    ),
    "no classes": (
        lambda root: with_vocabulary(root, classes=[], default_split="", splits={}),
        "VocabularyError: /.../vocabulary.json: ...the class list is empty; name at least one",
    ),
    "nothing seen": (
        lambda root: with_vocabulary(root, splits={"zs": {"seen": []}}),
        "VocabularyError: ...tiny5...seen",
    ),
    "missing weights": (
        option("MODEL.WEIGHTS", "/nowhere/w.pth"),
        "CheckpointError: /nowhere/w.pth: no such checkpoint",
    ),
    "corrupt weights": (corrupt_checkpoint, "CheckpointError: /.../w.pth: ...bytes"),
    "weights that are not here": (
        option("MODEL.WEIGHTS", "w.pkl"),
        "CheckpointError: MODEL.WEIGHTS: found 'w.pkl', which is not here, expected a .pth or",
    ),
    "unknown optimizer": (option("SOLVER.OPTIMIZER", "LION"), "...SOLVER.OPTIMIZER: found 'LION'"),
    "unknown schedule": (
        option("SOLVER.LR_SCHEDULER_NAME", "x"),
        "...LR_SCHEDULER_NAME: found 'x'",
    ),
    "unknown AMP type": (
        option("SOLVER.AMP.DTYPE", "int8"),
        "...SOLVER.AMP.DTYPE: found 'int8', exp",
    ),
    "unknown gate": (option("MODEL.TAGCLIP.TEST.GATE", "all"), "...MODEL.TAGCLIP.TEST.GATE"),
    "windows with gaps": (
        option("MODEL.TAGCLIP.TEST.STRIDE", 65),
        "ConfigError: MODEL.TAGCLIP.TEST.STRIDE: found 65, expected 1 to WINDOW (64)",
    ),
    "impossible seed": (
        option("SEED", -2),
        "...SEED: found -2, expected a whole number from -1 to 4294967295",
    ),
    "no steps": (option("SOLVER.MAX_ITER", 0), "...SOLVER.MAX_ITER: found 0, expected a whole num"),
    "workers below 0": (
        option("DATALOADER.NUM_WORKERS", -1),
        "...NUM_WORKERS: found -1, expected a whole number from 0",
    ),
    "unknown device": (
        option("MODEL.DEVICE", "gpu"),
        "...MODEL.DEVICE: found 'gpu', expected cuda",
    ),
    "device of another kind": (
        option("MODEL.DEVICE", "mps"),
        "...MODEL.DEVICE: found 'mps', expected cuda or cpu",
    ),
    "device without memory": (
        option("MODEL.DEVICE", "meta"),
        "...MODEL.DEVICE: found 'meta', expected cuda or cpu",
    ),
    "head of detectron2": (
        option("MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"),
        "...SEM_SEG_HEAD.NAME: found 'SemSegFPNHead', a part of detectron2's own models, expected ",
    ),
    "backbone of detectron2": (
        option("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
        "...BACKBONE.NAME: found 'build_resnet_backbone', a part of detectron2's own models, expe",
    ),
    "model of detectron2": (
        option("MODEL.META_ARCHITECTURE", "PanopticFPN"),
        "...MODEL.META_ARCHITECTURE: found 'PanopticFPN', a part of detectron2's own models, expe",
    ),
    "model in another case": (
        option("MODEL.META_ARCHITECTURE", "TagClip"),
        "...MODEL.META_ARCHITECTURE: found 'TagClip', expected TagCLIP; did you mean TagCLIP?; ch",
    ),
    "bias beyond all scores": (
        option("MODEL.TAGCLIP.TEST.SEEN_BIAS", "1e308"),
        "...MODEL.TAGCLIP.TEST.SEEN_BIAS: found 1e+308, expected a number from -100 to 100",
    ),
    "no expectation": (
        option("TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 38.5, 0.2]]"),
        "...TEST.EXPECTED_RESULTS: found [['bbox', 'AP', 38.5, 0.2]] for 1 datasets in DATASETS.TE",
    ),
    "expected metric that there is not": (
        option("TEST.EXPECTED_RESULTS", "[['sem_seg', 'mIoU', 1, 1], ['sem_seg', 'hiou', 1, 1]]"),
        "...TEST.EXPECTED_RESULTS: found the metric 'hiou', expected one of mIoU, ...; did you me",
    ),
    "name too long for a folder": (
        option("OUTPUT_DIR", "9" * 300),
        "ConfigError: OUTPUT_DIR 999...: found no folder to write to (File name too long)",
    ),
    "zero byte in the name of a folder": (
        option("OUTPUT_DIR", "a\0b"),
        "ConfigError: OUTPUT_DIR a\\x00b: found no folder to write to (",
    ),
    "unknown head": (
        option("MODEL.SEM_SEG_HEAD.NAME", "x"),
        "...MODEL.SEM_SEG_HEAD.NAME: found 'x', expected ...TagCLIPHead...; check it, or name",
    ),
    "two means": (
        option("MODEL.PIXEL_MEAN", [1.0, 2.0]),
        "...MODEL.PIXEL_MEAN: found [1.0, 2.0], expected a list of 0 or 3 numbers",
    ),
    "dropout above 1": (
        option("MODEL.TAGCLIP.DROPOUT", 1.5),
        "...MODEL.TAGCLIP.DROPOUT: found 1.5, expected a number of at least 0 and below 1",
    ),
    "unknown backbone": (
        option("MODEL.BACKBONE.NAME", "x"),
        "...MODEL.BACKBONE.NAME: found 'x', expected CLIPTimm or CLIPViT",
    ),
    "processes that a batch was not made for": (
        option("SOLVER.REFERENCE_WORLD_SIZE", 3),
        "...SOLVER.REFERENCE_WORLD_SIZE: found 3, expected a divisor of SOLVER.IMS_PER_BATCH (2)",
    ),
    "unknown project": (
        option("PROJECTS", "['maxi']"),
        "...PROJECTS: found 'maxi', expected some of",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(
    name: str,
    train_net: ModuleType,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    spoil, expected = MISTAKES[name]
    line = exit_of(run_tool, train_net.start, run_arguments(config, *spoil(tmp_path)))
    assert re.match(".*".join(map(re.escape, expected.split("..."))), line), line
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "output").exists()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (np.full((70, 80), 30), ": label 30 at (0,0), vocabulary tiny5 has 0..4 and ignore 255; "),
        (np.zeros((33, 44)), ": label is 44x33 (width x height), its image is "),
    ],
)
def test_a_bad_label_is_one_line_on_the_terminal(
    workers: int,
    label: np.ndarray,
    expected: str,
    train_net: ModuleType,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    # Of the first file it is known before anything is written.
    *_, bad = train_labels(tmp_path)
    height, width = label.shape
    if label.any():
        Image.new("RGB", (width, height)).save(tmp_path / "images" / "train" / bad.name)
    Image.fromarray(label.astype(np.uint8)).save(bad)
    arguments = run_arguments(config, "DATALOADER.NUM_WORKERS", workers)
    line = exit_of(run_tool, train_net.start, arguments)
    assert line.startswith(f"DatasetError: {bad}{expected}") and "\n" not in line
    assert "Traceback" not in capsys.readouterr().out
    output = tmp_path / "output"
    assert "Traceback" in (output / "log.txt").read_text()
    assert not list(output.glob("**/*.pth")) and not (output / "inference").exists()
