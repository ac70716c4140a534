"""MiniBench's transductive configs: what they are, and a short run as the README gives it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from helpers.tiny_run import load_tool, own_loggers, run_arguments
from helpers.toy_dataset import forget, write_sample

from tagclip import load_config, register_zero_shot_sem_seg
from tagclip.data import Protocol
from tagclip.evaluation.results import read_result_rows
from tagclip.projects.minibench import VOCABULARY_JSON
from tagclip.projects.minibench.generate import scene

CONFIGS = Path(__file__).resolve().parents[2] / "projects" / "MiniBench" / "configs"
DATASET = "minibench_transductive"


@pytest.mark.parametrize("head", ["", "_convtrust"])
@pytest.mark.parametrize("split", ["composition", "noun_fence_board", "noun_dice_board"])
def test_a_transductive_config_adds_pseudo_labels_and_nothing_else(split: str, head: str) -> None:
    first = load_config(CONFIGS / f"tagclip_minibench_{split}{head}.yaml")
    second = load_config(CONFIGS / f"tagclip_minibench_{split}_transductive{head}.yaml")
    assert ("conv" if head else "token") == second.MODEL.TAGCLIP.TRUSTY.KIND
    assert second.DATASETS.ZERO_SHOT.SETTING == "transductive"
    assert not Protocol(second).reads_novel_masks
    assert not second.DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS
    assert second.SOLVER.MAX_ITER == first.SOLVER.MAX_ITER == 2 * first.SOLVER.CHECKPOINT_PERIOD
    for key in ("CONFIG_NAME", "OUTPUT_DIR"):
        assert second[key] != first[key]
        second[key] = first[key]
    second.DATASETS.ZERO_SHOT.SETTING = "inductive"
    assert second == first


def test_it_continues_the_inductive_run(tmp_path: Path, repository: Path) -> None:
    train_net = load_tool(repository / "tools" / "train_net.py")
    for index in range(4):
        drawn = scene("train", index)
        write_sample(tmp_path, f"{index:06d}", drawn.image, drawn.label)
    folders = tmp_path / "images", tmp_path / "labels"
    register_zero_shot_sem_seg(DATASET, *folders, VOCABULARY_JSON, image_ext="png")
    short = [
        *("DATASETS.TRAIN", f"('{DATASET}',)", "DATASETS.TEST", f"('{DATASET}',)"),
        *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2),
        *("SOLVER.WARMUP_ITERS", 1, "MODEL.DEVICE", "cpu"),
    ]
    first, second = tmp_path / "inductive", tmp_path / "transductive"
    # After two iterations no unseen class would win yet.
    eager = ["MODEL.TAGCLIP.SELF_TRAINING.THRESHOLD", 0.0, "MODEL.TAGCLIP.TEST.SEEN_BIAS", 1.0]
    opts = [*short, "OUTPUT_DIR", second, *eager]
    weights = ["MODEL.WEIGHTS", first / "model_0000001.pth"]
    try:
        with own_loggers():
            name = CONFIGS / "tagclip_minibench_noun_fence_board_convtrust.yaml"
            train_net.main(run_arguments(name, *short, "OUTPUT_DIR", first))
            name = CONFIGS / "tagclip_minibench_noun_fence_board_transductive_convtrust.yaml"
            results = train_net.main(run_arguments(name, *opts, *weights))
    finally:
        forget(DATASET)
    assert DATASET not in DatasetCatalog.list()
    assert math.isfinite(results["sem_seg"]["mIoU"])
    curve = [json.loads(line) for line in (second / "metrics.json").read_text().splitlines()]
    assert curve[0]["pseudo_labels"] > 0 and math.isfinite(curve[0]["total_loss"])
    assert any(key.startswith("pseudo_labels/") for key in curve[0])
    (row,) = read_result_rows(second / "results.csv")[1]
    assert (row["setting"], row["weights"]) == ("transductive", "model_0000001.pth")
    assert row["config"] == "tagclip_minibench_noun_fence_board_transductive_convtrust.yaml"
