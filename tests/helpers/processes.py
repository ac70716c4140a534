"""Runs of several processes that the tests of distribution start, and what they compare."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from helpers.paths import REPOSITORY
from helpers.tiny_run import changed, losses, weights
from torch import distributed

from tagclip import ZeroShotTrainer, load_config, register_zero_shot_sem_seg

STEPS = 10
# The command torchrun, on a free port.
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# An image of a shard and of the rest: with two processes the second one gets none.
SUBSETS = ("train", "val", "single")


def make_config(root: Path, clip: str, vocabulary: str) -> CfgNode:
    """Register the datasets below ``root`` in this process; ten steps of four images."""
    for subset in SUBSETS:
        register_zero_shot_sem_seg(
            f"distributed_{subset}",
            image_root=str(root / "images" / subset),
            sem_seg_root=str(root / "labels" / subset),
            vocabulary_json=vocabulary,
            image_ext="png",
        )
    names = {
        "DATASETS.TRAIN": ("distributed_train",),
        "DATASETS.TEST": ("distributed_val", "distributed_single"),
    }
    return _small(clip, OUTPUT_DIR=str(root / "output"), **names)


def write_config(root: Path, clip: str, **keys: Any) -> Path:
    """Write a config of two steps that any process can use, on minibench's classes."""
    names = {"DATASETS.TRAIN": ("minibench_train",), "DATASETS.TEST": ("minibench_val",)}
    own = {"PROJECTS": ["minibench"], "SOLVER.MAX_ITER": 2, "SEED": 3}
    path = root / "config.yaml"
    path.write_text(_small(clip, **names, **own, **keys).dump())
    return path


def _small(clip: str, **keys: Any) -> CfgNode:
    options = {
        "MODEL.DEVICE": "cpu",
        "MODEL.CLIP.NAME": clip,
        "MODEL.CLIP.PRETRAINED": "",
        "MODEL.CLIP.PROMPT.NUM_TOKENS": 3,
        "MODEL.CLIP.PROMPT.DROPOUT": 0.0,
        "MODEL.TAGCLIP.NUM_HEADS": 4,
        "MODEL.TAGCLIP.DROPOUT": 0.0,
        "MODEL.TAGCLIP.TEST.WINDOW": 64,
        "MODEL.TAGCLIP.TEST.STRIDE": 48,
        "INPUT.CROP.SIZE": [64, 64],
        "INPUT.MIN_SIZE_TRAIN": [64],
        "INPUT.MIN_SIZE_TEST": 64,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.MAX_ITER": STEPS,
        "SOLVER.WARMUP_ITERS": 0,
        # Adam turns the rounding noise of a zero gradient into steps of full length.
        "SOLVER.OPTIMIZER": "SGD",
        "SOLVER.BASE_LR": 0.02,
        **keys,
    }
    opts = [value for pair in options.items() for value in pair]
    return load_config(REPOSITORY / "configs" / "Base-ZeroShot.yaml", opts)


@contextmanager
def joined(root: Path, rank: int, world: int) -> Iterator[None]:
    """Be one of the processes of a gloo group inside."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{root / f'rendezvous{world}'}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=120),
    )
    comm._LOCAL_PROCESS_GROUP = distributed.new_group(list(range(world)))
    yield
    distributed.destroy_process_group()


def train(cfg: CfgNode, name: str, hook: HookBase | None = None) -> ZeroShotTrainer:
    """Train in OUTPUT_DIR/name."""
    cfg = changed(cfg, "OUTPUT_DIR", str(Path(cfg.OUTPUT_DIR) / name))
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    trainer = ZeroShotTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([hook])
    trainer.train()
    return trainer


def trained(cfg: CfgNode, name: str) -> dict[str, Any]:
    """What a training ends with: weights, statistics, in the main process losses of each step."""
    trainer = train(changed(cfg, "DATASETS.TEST", "()"), name)
    model = getattr(trainer.model, "module", trainer.model)
    statistics = {name: b.clone() for name, b in model.named_buffers() if ".running_" in name}
    return {"weights": weights(model), "statistics": statistics, "losses": losses(trainer)}


def untrained(cfg: CfgNode, name: str) -> dict[str, torch.Tensor]:
    """The weights that training starts from."""
    return weights(ZeroShotTrainer(changed(cfg, "OUTPUT_DIR", f"{cfg.OUTPUT_DIR}/{name}")).model)


def check_same_training(
    alone: dict[str, Any], team: Sequence[dict[str, Any]], before: dict[str, torch.Tensor]
) -> None:
    """Several processes end with the weights and the losses of one, to 1e-5."""
    moved = 0
    for name, expected in alone["weights"].items():
        assert all(torch.equal(team[0]["weights"][name], other["weights"][name]) for other in team)
        error = (team[0]["weights"][name] - expected).norm()
        assert error <= 1e-5 * expected.norm(), name
        moved += bool((expected - before[name]).norm() > 1e-3 * expected.norm())
    # The bound means something: most tensors moved a hundred times further.
    assert moved > 20
    assert sorted(alone["losses"]) == list(range(STEPS))
    for step, values in alone["losses"].items():
        assert len(values) >= 3
        for name, value in values.items():
            assert abs(team[0]["losses"][step][name] - value) <= 1e-5 * abs(value), (step, name)


def command(*words: object, python: Sequence[str] = (sys.executable,)) -> list[str]:
    """A command line of tools/train_net.py."""
    return [*python, str(REPOSITORY / "tools" / "train_net.py"), *map(str, words)]


def environment(root: Path) -> dict[str, str]:
    """Where minibench's data are; one thread per process."""
    return {**os.environ, "DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"}


def start(line: Sequence[str], root: Path) -> subprocess.Popen:
    """Start a command whose stdout and stderr come as one text."""
    return subprocess.Popen(
        line,
        cwd=root,
        env=environment(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process: subprocess.Popen, text: str) -> None:
    """Read what a process prints until some text comes."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return
    raise AssertionError("".join(seen))


def children(pid: int) -> list[int]:
    """Processes with that parent, of multiprocessing or torchrun, that work; oldest first."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        if any("spawn_main" in word or word.endswith("train_net.py") for word in words):
            found.append(int(child))
    return found
