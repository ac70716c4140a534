"""Two processes on the CPU train and evaluate as one does, and end together."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from tiny_run import changed, equal, exit_of, losses, weights, write_tiny_dataset
from torch import distributed
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from tagclip import ZeroShotTrainer, load_config, register_zero_shot_sem_seg
from tagclip.errors import ConfigError, NonFiniteLossError

WORLD, STEPS = 2, 3


def make_config(root: Path, clip: str, vocabulary: str) -> CfgNode:
    """Register the datasets below ``root`` in this process; three steps of four images."""
    for subset in ("train", "val"):
        register_zero_shot_sem_seg(
            f"distributed_{subset}",
            image_root=str(root / "images" / subset),
            sem_seg_root=str(root / "labels" / subset),
            vocabulary_json=vocabulary,
            image_ext="png",
        )
    base = Path(__file__).resolve().parents[1] / "configs" / "Base-ZeroShot.yaml"
    options = [
        "MODEL.DEVICE", "cpu",
        "MODEL.CLIP.NAME", clip,
        "MODEL.CLIP.PRETRAINED", "",
        "MODEL.CLIP.PROMPT.NUM_TOKENS", 3,
        "MODEL.CLIP.PROMPT.DROPOUT", 0.0,
        "MODEL.TAGCLIP.NUM_HEADS", 4,
        "MODEL.TAGCLIP.DROPOUT", 0.0,
        "MODEL.TAGCLIP.TEST.WINDOW", 64,
        "MODEL.TAGCLIP.TEST.STRIDE", 48,
        "INPUT.CROP.SIZE", [64, 64],
        "INPUT.MIN_SIZE_TRAIN", [64],
        "INPUT.MIN_SIZE_TEST", 64,
        "DATALOADER.NUM_WORKERS", 0,
        "DATASETS.TRAIN", ("distributed_train",),
        "DATASETS.TEST", ("distributed_val",),
        "SOLVER.IMS_PER_BATCH", 4,
        "SOLVER.MAX_ITER", STEPS,
        "SOLVER.WARMUP_ITERS", 0,
        # Adam turns the rounding noise of a zero gradient into steps of full length.
        "SOLVER.OPTIMIZER", "SGD",
        "SOLVER.BASE_LR", 0.1,
        "OUTPUT_DIR", str(root / "output"),
    ]  # fmt: skip
    return load_config(base, options)


def train(cfg: CfgNode, name: str, hook: HookBase | None = None) -> ZeroShotTrainer:
    """Train in OUTPUT_DIR/name."""
    cfg = changed(cfg, "OUTPUT_DIR", str(Path(cfg.OUTPUT_DIR) / name))
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    trainer = ZeroShotTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([hook])
    trainer.train()
    return trainer


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
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{root / 'rendezvous'}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=120),
    )
    comm._LOCAL_PROCESS_GROUP = distributed.new_group(list(range(WORLD)))
    cfg = make_config(root, clip, vocabulary)
    trainer = train(cfg, "pair")
    assert isinstance(trainer.model, DistributedDataParallel)
    found: dict[str, Any] = {
        "weights": weights(trainer.model.module),
        "losses": losses(trainer),
        "evaluation": evaluate(cfg),
        "sigterm": exit_of(train, cfg, "sigterm", BreakInTheSecondProcess("sigterm")),
    }
    for key, function in {
        "nan": lambda: train(cfg, "nan", BreakInTheSecondProcess("nan")),
        "odd": lambda: train(changed(cfg, "SOLVER.IMS_PER_BATCH", 3), "odd"),
    }.items():
        try:
            function()
        except (NonFiniteLossError, ConfigError) as error:
            found[key] = str(error)
    torch.save(found, root / f"found{rank}.pth")
    distributed.destroy_process_group()


def evaluate(cfg: CfgNode) -> dict[str, float] | None:
    """Evaluate the weights that one process trained; None in other processes than the first."""
    model = ZeroShotTrainer.build_model(cfg)
    saved = torch.load(Path(cfg.OUTPUT_DIR) / "alone" / "model_final.pth", weights_only=True)
    model.load_state_dict(saved["model"], strict=False)
    results = ZeroShotTrainer.test(cfg, model)
    return dict(results["sem_seg"]) if comm.is_main_process() else None


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, tiny_clip_json: str, tiny_vocabulary_json: str
) -> dict[str, Any]:
    """The same done by one process."""
    root = tmp_path_factory.mktemp("distributed")
    # An odd number of test images: the shards differ.
    write_tiny_dataset(root, train=6, val=3)
    cfg = make_config(root, tiny_clip_json, tiny_vocabulary_json)
    before = weights(ZeroShotTrainer(changed(cfg, "OUTPUT_DIR", str(root / "unused"))).model)
    trainer = train(cfg, "alone")
    return {
        "root": root,
        "before": before,
        "weights": weights(trainer.model),
        "losses": losses(trainer),
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
    assert equal(pair[0]["weights"], pair[1]["weights"])
    moved = 0
    for name, expected in alone["weights"].items():
        step = (expected - alone["before"][name]).norm()
        error = (pair[0]["weights"][name] - expected).norm()
        assert error <= 1e-5 * expected.norm(), name
        moved += bool(step > 1e-3 * expected.norm())
    # The bound means something: most tensors moved a hundred times further.
    assert moved > 20
    for step in range(STEPS):
        assert pair[0]["losses"][step] == pytest.approx(alone["losses"][step], rel=1e-5)


def test_sharded_evaluation_equals_unsharded(
    alone: dict[str, Any], pair: list[dict[str, Any]]
) -> None:
    np.testing.assert_equal(pair[0]["evaluation"], alone["evaluation"])
    assert pair[1]["evaluation"] is None


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
