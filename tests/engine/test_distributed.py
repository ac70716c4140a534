"""Two processes on the CPU train and evaluate as one does, and end together."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from helpers.processes import check_same_training, joined, make_config, train, trained, untrained
from helpers.tiny_run import (
    changed,
    equal,
    exit_of,
    maskclip_parts,
    train_in_two,
    weights,
    write_tiny_dataset,
)
from torch.multiprocessing import spawn

from tagclip import ZeroShotTrainer
from tagclip.data.datasets.selection import without_unseen_images
from tagclip.errors import ConfigError, NonFiniteLossError
from tagclip.projects import import_projects

WORLD = 2
CONV = (
    "MODEL.TAGCLIP.TRUSTY.KIND", "conv",
    "MODEL.TAGCLIP.TRUSTY.CONV.STEPS", 2,
    "MODEL.TAGCLIP.TRUSTY.CONV.REPLAY_BATCHES", 3,
)  # fmt: skip
TRUSTY_HEAD = ".trusty_head."


def trusty_head_alone(cfg: CfgNode) -> CfgNode:
    """The same data; nothing but a convolutional trusty head is trained."""
    import_projects(["training_free"])
    return changed(cfg, *maskclip_parts(), "MODEL.TAGCLIP.TRUSTY.ENABLED", True, *CONV)


class BreakInTheSecondProcess(HookBase):
    """From the second step on: a weight that is not a number, or SIGTERM."""

    def __init__(self, how: str) -> None:
        self.how = how

    def before_step(self) -> None:
        if self.trainer.iter != 1 or comm.get_rank() != 1:
            return
        if self.how == "nan":
            next(p for p in self.trainer.model.parameters() if p.requires_grad).data.fill_(np.nan)
        else:
            os.kill(os.getpid(), signal.SIGTERM)


def in_process(rank: int, root: Path, clip: str, vocabulary: str) -> None:
    """What each of the processes does; writes what it found."""
    with joined(root, rank, WORLD):
        cfg = make_config(root, clip, vocabulary)
        found: dict[str, Any] = {
            **trained(cfg, "pair"),
            "parts": trained(changed(cfg, "SOLVER.ACCUMULATE", 2), "pair_parts"),
            "conv": trained(changed(cfg, *CONV), "pair_conv"),
            "resumed": resumed(changed(cfg, *CONV, "DATASETS.TEST", ())),
            "trusty head alone": trained(trusty_head_alone(cfg), "pair_alone"),
            "evaluation": evaluate(cfg),
            "kept": kept_images(),
            "sigterm": exit_of(train, cfg, "sigterm", BreakInTheSecondProcess("sigterm")),
        }
        for key, function in {
            "nan": lambda: train(cfg, "nan", BreakInTheSecondProcess("nan")),
            "odd": lambda: train(changed(cfg, "SOLVER.IMS_PER_BATCH", 3), "odd"),
            "odd parts": lambda: train(changed(cfg, "SOLVER.ACCUMULATE", 4), "odd"),
        }.items():
            try:
                function()
            except (NonFiniteLossError, ConfigError) as error:
                found[key] = str(error)
        torch.save(found, root / f"found{rank}.pth")


def resumed(cfg: CfgNode) -> dict[str, torch.Tensor]:
    """Weights after a training that broke off and went on."""
    model = train_in_two(cfg, 4).model
    return weights(getattr(model, "module", model))


def evaluate(cfg: CfgNode) -> dict[str, dict[str, float]] | None:
    """Evaluate the weights that one process trained; None in other processes than the first."""
    model = ZeroShotTrainer.build_model(cfg)
    saved = torch.load(Path(cfg.OUTPUT_DIR) / "alone" / "model_final.pth", weights_only=True)
    model.load_state_dict(saved["model"], strict=False)
    results = ZeroShotTrainer.test(cfg, model)
    if not comm.is_main_process():
        return None
    return {name: dict(found["sem_seg"]) for name, found in results.items()}


def kept_images() -> list[dict[str, int]]:
    """Seven images, of which every third shows an unseen class."""
    return without_unseen_images([{"index": i} for i in range(7)], lambda s: s["index"] % 3 == 0)


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, tiny_clip_json: str, tiny_vocabulary_json: str
) -> dict[str, Any]:
    """The same done by one process."""
    root = tmp_path_factory.mktemp("distributed")
    # An odd number of test images: the shards differ. A single one: the second shard is empty.
    write_tiny_dataset(root, train=6, val=3)
    for kind in ("images", "labels"):
        (root / kind / "single").mkdir()
        shutil.copy(root / kind / "val" / "1.png", root / kind / "single")
    cfg = make_config(root, tiny_clip_json, tiny_vocabulary_json)
    before = untrained(cfg, "unused")
    conv = changed(cfg, *CONV)
    return {
        "root": root,
        "before": before,
        "before_conv": untrained(conv, "unused"),
        "before_alone": untrained(trusty_head_alone(cfg), "unused"),
        **trained(cfg, "alone"),
        "conv": trained(conv, "alone_conv"),
        "evaluation": evaluate(cfg),
    }


@pytest.fixture(scope="module")
def pair(
    alone: dict[str, Any], tiny_clip_json: str, tiny_vocabulary_json: str
) -> list[dict[str, Any]]:
    """What each of two processes found."""
    root = alone["root"]
    spawn(in_process, args=(root, tiny_clip_json, tiny_vocabulary_json), nprocs=WORLD)
    return [torch.load(root / f"found{rank}.pth", weights_only=True) for rank in range(WORLD)]


def test_two_processes_train_as_one(alone: dict[str, Any], pair: list[dict[str, Any]]) -> None:
    check_same_training(alone, pair, alone["before"])


def test_two_processes_train_in_parts_as_one_in_a_piece(
    alone: dict[str, Any], pair: list[dict[str, Any]]
) -> None:
    check_same_training(alone, [found["parts"] for found in pair], alone["before"])


def test_a_convolutional_trusty_head_is_the_same_in_both_processes(
    alone: dict[str, Any], pair: list[dict[str, Any]]
) -> None:
    first, second = (found["conv"] for found in pair)
    assert first["statistics"] and equal(first["statistics"], second["statistics"])
    assert equal(first["weights"], second["weights"])
    for name, weight in first["weights"].items():
        if TRUSTY_HEAD in name:
            # Each process learns from batches of its own: another head than that of one process.
            assert not torch.equal(weight, alone["before_conv"][name]), name
        else:
            expected = alone["conv"]["weights"][name]
            assert (weight - expected).norm() <= 1e-5 * expected.norm(), name


def test_a_resumed_run_of_two_processes_ends_with_the_same_bits(
    pair: list[dict[str, Any]],
) -> None:
    """Also of the trusty head, for which each process keeps batches of its own."""
    for found in pair:
        assert equal(found["resumed"], found["conv"]["weights"])


def test_a_trusty_head_alone_is_the_same_in_both_processes(
    alone: dict[str, Any], pair: list[dict[str, Any]]
) -> None:
    first, second = (found["trusty head alone"] for found in pair)
    assert first["statistics"] and equal(first["statistics"], second["statistics"])
    assert equal(first["weights"], second["weights"])
    for name, weight in first["weights"].items():
        assert torch.equal(weight, alone["before_alone"][name]) == (TRUSTY_HEAD not in name), name


@pytest.mark.parametrize("dataset", ["distributed_val", "distributed_single"])
def test_sharded_evaluation_equals_unsharded(
    dataset: str, alone: dict[str, Any], pair: list[dict[str, Any]]
) -> None:
    expected = alone["evaluation"][dataset]
    np.testing.assert_equal(pair[0]["evaluation"][dataset], expected)
    assert expected["pAcc"] > 0
    assert pair[1]["evaluation"] is None


def test_the_search_for_unseen_classes_is_shared(pair: list[dict[str, Any]]) -> None:
    expected = [{"index": index} for index in (1, 2, 4, 5)]
    assert kept_images() == expected
    assert [found["kept"] for found in pair] == [expected, expected]


def test_a_broken_loss_in_one_process_stops_all(pair: list[dict[str, Any]]) -> None:
    assert pair[0]["nan"] == pair[1]["nan"]
    assert "iteration 1, process 1: found losses" in pair[0]["nan"]
    assert pair[0]["nan"].count(".png") == 2


def test_sigterm_for_one_process_stops_all(
    alone: dict[str, Any], pair: list[dict[str, Any]]
) -> None:
    assert [found["sigterm"] for found in pair] == [0, 0]
    folder = alone["root"] / "output" / "sigterm"
    assert (folder / "last_checkpoint").read_text() == "model_0000001.pth"


def test_a_batch_that_cannot_be_shared(pair: list[dict[str, Any]]) -> None:
    expected = "SOLVER.IMS_PER_BATCH: found 3, expected a multiple of the 2 processes"
    assert all(found["odd"].startswith(expected) for found in pair)
    expected = "SOLVER.ACCUMULATE: found 4, expected a divisor of the 2 images that a process"
    assert all(found["odd parts"].startswith(expected) for found in pair)
