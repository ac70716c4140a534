"""What has done no work does not end as if it had: one line, exit code 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.bench import NO_TEST, Bench, refused
from helpers.paths import TOOLS
from helpers.tiny_run import (
    CLASSES,
    UNSEEN,
    VOID,
    changed,
    load_tool,
    short_run,
    train,
    train_labels,
)
from PIL import Image

from tagclip import ZeroShotTrainer, register_zero_shot_sem_seg
from tagclip.errors import ConfigError


def test_an_evaluation_of_no_dataset(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    """The trainer's own call at the end of a training without DATASETS.TEST is none."""
    cfg = short_run(tiny_cfg, tmp_path, "SOLVER.MAX_ITER", 1)
    trainer = train(cfg)
    assert not trainer.cfg.DATASETS.TEST and not list(tmp_path.rglob("inference"))
    with pytest.raises(ConfigError, match=r"^DATASETS\.TEST: found no dataset, expected one at"):
        ZeroShotTrainer.test(cfg, trainer.model)
    found = ZeroShotTrainer.test(changed(tiny_cfg, "SOLVER.IMS_PER_BATCH", 2), trainer.model)
    assert found["sem_seg"]


def validate(bench: Bench, *words: Any) -> None:
    tool = load_tool(TOOLS / "validate_dataset.py")
    words = (*words, "--output", bench.root / "v", "--workers", 0)
    refused(lambda: tool.main(tool.parse_args(list(map(str, words)))), "found no dataset, expected")


def test_commands_without_anything_to_do(
    bench: Bench, tmp_path: Path, tiny_vocabulary_json: str
) -> None:
    nothing = ("DATASETS.TRAIN", "()", *NO_TEST)
    validate(bench, "--config-file", bench.config, *nothing)
    refused(
        bench.new_training(*nothing), "DATASETS.TRAIN: found no dataset, expected", "--config-file"
    )
    refused(bench.new_training("SOLVER.MAX_ITER", 0), "SOLVER.MAX_ITER: found 0, expected")
    refused(bench.evaluation(bench.weights, *NO_TEST), "DATASETS.TEST: found no dataset")
    empty, name = tmp_path / "empty", f"empty_{tmp_path.name}"
    empty.mkdir()
    register_zero_shot_sem_seg(name, empty, empty, tiny_vocabulary_json, image_ext="png")
    refused(bench.training_on(name), f"dataset {name}: no *.png image in {empty}")
    refused(bench.evaluation_on(name), f"dataset {name}: no *.png image in {empty}")
    for tool, words, said in (
        ("demo", [empty, "--weights", bench.weights, "--vocab", "a, b", "--output", tmp_path / "o"],
         "no image in this folder"),
        ("demo", [tmp_path / "*.x", "--weights", bench.weights, "--vocab", "a, b"], "or match"),
        ("bulk", [empty, "--output", tmp_path / "b", "--format", "webdataset", "--processes", 1],
         "found nothing there"),
        ("score_predictions", [empty, "--config-file", bench.config, "--workers", 0],
         "found no predictions"),
        ("analyze_predictions", [empty], "no inference/<dataset>/metrics.json in it"),
        ("compare_runs", [empty], "no inference/<dataset>/metrics.json in it"),
        ("convert_labels", [empty, "--scan", "--workers", 0], "found no mask files"),
        ("export_predictions",
         [empty, "--to", "coco", "--output", tmp_path / "x", "--vocab", "a", "--images", empty],
         "no image in this folder"),
    ):  # fmt: skip
        script = load_tool(TOOLS / f"{tool}.py")
        call = getattr(script, "run", script.main)
        refused(lambda c=call, s=script, w=words: c(s.parse_args(list(map(str, w)))), said)


@pytest.mark.parametrize("what", ["all void", "all unseen"])
def test_a_training_without_a_pixel_to_learn(bench: Bench, what: str) -> None:
    labels = train_labels(bench.config.parent)
    for path in labels:
        size = Image.open(path).size
        Image.new("L", size, VOID if what == "all void" else UNSEEN[0]).save(path)
    said = f"DatasetError: {labels[0]}: found no pixel with a class to learn in this and 5 other"
    refused(bench.new_training(*NO_TEST), said)
    assert not (bench.root / "anew").exists()
    if what == "all unseen":
        # What is said to be seen is learnt.
        assert bench.train(*NO_TEST, "DATASETS.ZERO_SHOT.SETTING", "supervised") is None
    # One pixel in the last file is something to learn.
    label = np.full(Image.open(labels[-1]).size[::-1], VOID, np.uint8)
    label[3, 4] = next(i for i in range(CLASSES) if i not in UNSEEN)
    Image.fromarray(label).save(labels[-1])
    assert bench.train(*NO_TEST, "OUTPUT_DIR", bench.root / "anew") is None
