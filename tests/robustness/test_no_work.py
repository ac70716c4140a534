"""What has done no work does not end as if it had: one line, exit code 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from helpers.bench import NO_TEST, Bench, refused
from helpers.paths import TOOLS
from helpers.tiny_run import changed, load_tool, short_run, train

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
