"""A tiny dataset on disk and short runs on it, for the tests of training and evaluation."""

from __future__ import annotations

import argparse
import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils import logger as detectron2_logger
from helpers.paths import REPOSITORY
from helpers.toy_dataset import vocabulary_tree
from PIL import Image

NAMES = ["cat", "dog", "grass", "sky", "sofa"]
CLASSES, UNSEEN, VOID = 5, (1, 3), 255
_LOGGERS = ("detectron2", "fvcore", "tagclip")


def tiny_tree(**changes: Any) -> dict[str, Any]:
    """Vocabulary json of the tiny dataset, with other values of some keys."""
    return vocabulary_tree(NAMES, [NAMES[i] for i in UNSEEN]) | {"name": "tiny5"} | changes


def write_tiny_dataset(root: Path, train: int = 6, val: int = 3) -> None:
    """Write images and labels of blocks, of different sizes, for the fixture ``tiny_cfg``."""
    generator = np.random.default_rng(0)
    for subset, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (root / kind / subset).mkdir(parents=True)
        for index in range(count):
            height, width = generator.integers(64, 90, 2)
            blocks = generator.choice([*range(CLASSES), VOID], (3, 3)).astype(np.uint8)
            label = blocks.repeat(30, 0).repeat(30, 1)[:height, :width]
            image = generator.integers(0, 80, (height, width, 3)) + label[..., None] % 7 * 25
            for kind, array in (("images", image.astype(np.uint8)), ("labels", label)):
                Image.fromarray(array).save(root / kind / subset / f"{index}.png")


def train_labels(root: Path) -> list[Path]:
    """Label files of the training set."""
    return sorted((root / "labels" / "train").iterdir())


def changed(cfg: CfgNode, *opts: Any) -> CfgNode:
    """Copy of a config with other values: opts are keys and values."""
    cfg = cfg.clone()
    cfg.merge_from_list(list(opts))
    return cfg


def maskclip_parts() -> list[Any]:
    """Keys and values that turn a config's model into projects/TrainingFree's."""
    from tagclip import load_config

    path = "projects/TrainingFree/configs/Base-MaskCLIP.yaml"
    cfg = load_config(REPOSITORY / path)
    return [
        "PROJECTS", cfg.PROJECTS,
        "MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME,
        "MODEL.SEM_SEG_HEAD.NAME", cfg.MODEL.SEM_SEG_HEAD.NAME,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES", cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES,
        "MODEL.CLIP.LAST_BLOCK", cfg.MODEL.CLIP.LAST_BLOCK,
        "MODEL.CLIP.PROMPT.NUM_TOKENS", cfg.MODEL.CLIP.PROMPT.NUM_TOKENS,
        "MODEL.TAGCLIP.TRUSTY.ENABLED", cfg.MODEL.TAGCLIP.TRUSTY.ENABLED,
        "MODEL.TAGCLIP.TEST.SEEN_BIAS", cfg.MODEL.TAGCLIP.TEST.SEEN_BIAS,
    ]  # fmt: skip


def short_run(cfg: CfgNode, root: Path, *opts: Any) -> CfgNode:
    """Write the dataset of ``tiny_cfg``; a config of steps of two images without evaluation.

    Args:
        cfg: the fixture.
        root: folder of its dataset.
        opts: keys and values that differ.
    """
    write_tiny_dataset(root)
    steps = ("SOLVER.IMS_PER_BATCH", 2, "SOLVER.WARMUP_ITERS", 2, "DATASETS.TEST", ())
    return changed(cfg, *steps, *opts)


def tiny_config(root: Path, clip_json: str, vocabulary_json: str) -> CfgNode:
    """Config of a random tiny model; its datasets, below a folder, are registered, not written.

    Args:
        root: its name is part of the datasets' names.
        clip_json: open_clip's model json.
        vocabulary_json: of the datasets.
    """
    from tagclip import load_config, register_zero_shot_sem_seg

    for subset in ("train", "val"):
        name = f"tiny_{subset}_{root.name}"
        register_zero_shot_sem_seg(
            name,
            image_root=str(root / "images" / subset),
            sem_seg_root=str(root / "labels" / subset),
            vocabulary_json=vocabulary_json,
            image_ext="png",
        )
    options = {
        "MODEL.DEVICE": "cpu",
        "MODEL.CLIP.NAME": clip_json,
        "MODEL.CLIP.PRETRAINED": "",
        "MODEL.CLIP.PROMPT.NUM_TOKENS": 3,
        "MODEL.TAGCLIP.NUM_HEADS": 4,
        "MODEL.TAGCLIP.TEST.WINDOW": 64,
        "MODEL.TAGCLIP.TEST.STRIDE": 48,
        "INPUT.CROP.SIZE": [64, 64],
        "INPUT.MIN_SIZE_TRAIN": [64],
        "INPUT.MIN_SIZE_TEST": 64,
        "DATALOADER.NUM_WORKERS": 0,
        "DATASETS.TRAIN": (f"tiny_train_{root.name}",),
        "DATASETS.TEST": (f"tiny_val_{root.name}",),
        "OUTPUT_DIR": str(root / "output"),
    }
    opts = [value for pair in options.items() for value in pair]
    return load_config(REPOSITORY / "configs" / "Base-ZeroShot.yaml", opts)


def write_run_config(cfg: CfgNode, root: Path) -> Path:
    """Write the dataset of ``tiny_cfg`` and a config file of a training of four steps."""
    write_tiny_dataset(root)
    cfg = changed(cfg, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 1)
    path = root / "config.yaml"
    path.write_text(cfg.dump())
    return path


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two dicts of tensors hold the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Call(HookBase):
    """Call a function with the trainer before or after one iteration."""

    def __init__(
        self, iteration: int, function: Callable[[Any], None], after: bool = False
    ) -> None:
        self.iteration, self.function, self.is_after = iteration, function, after

    def before_step(self) -> None:
        if not self.is_after and self.trainer.iter == self.iteration:
            self.function(self.trainer)

    def after_step(self) -> None:
        if self.is_after and self.trainer.iter == self.iteration:
            self.function(self.trainer)


def train(cfg: CfgNode, *opts: Any, hook: HookBase | None = None, resume: bool = False) -> Any:
    """Train; return the trainer.

    Args:
        cfg: on a dataset that exists.
        opts: keys and values that differ from it.
        hook: the last one.
        resume: whether to continue what is in OUTPUT_DIR.
    """
    from tagclip import ZeroShotTrainer

    cfg = changed(cfg, *opts)
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    if not resume:
        # A finished run there may be of another config.
        Path(cfg.OUTPUT_DIR, "model_final.pth").unlink(missing_ok=True)
    trainer = ZeroShotTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.register_hooks([hook])
    trainer.train()
    return trainer


def train_in_two(cfg: CfgNode, iteration: int) -> Any:
    """Break a training off after an iteration, go on from a checkpoint there; return the trainer.

    It has a folder of its own: another training of this config may be compared with it.
    """
    half = changed(cfg, "OUTPUT_DIR", f"{cfg.OUTPUT_DIR}_half")

    def stop(trainer: Any) -> None:
        trainer.checkpointer.save("half", iteration=trainer.iter)
        # One process writes, and all read.
        comm.synchronize()
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train(half, hook=Call(iteration, stop, after=True))
    return train(half, resume=True)


def losses(trainer: Any) -> dict[int, dict[str, float]]:
    """Iteration -> losses, as a trainer recorded them."""
    found: dict[int, dict[str, float]] = {}
    for name, history in trainer.storage.histories().items():
        if "loss" in name:
            for value, iteration in history.values():
                found.setdefault(int(iteration), {})[name] = value
    return found


def run_arguments(config_file: str | Path = "", *opts: Any, **options: Any) -> argparse.Namespace:
    """What ``tools/train_net.py`` parses from a command line."""
    return argparse.Namespace(
        **{
            "config_file": str(config_file),
            "opts": [str(value) for value in opts],
            "resume": False,
            "overwrite": False,
            "eval_only": False,
            "num_gpus": 1,
            "num_machines": 1,
            "machine_rank": 0,
            "dist_url": "auto",
            **options,
        }
    )


def load_tool(path: Path) -> ModuleType:
    """Import a script by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def own_loggers() -> Iterator[None]:
    """Give the loggers back as they were: each run adds handlers and lets everything through."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    detectron2_logger.setup_logger.cache_clear()
    try:
        yield
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)
        detectron2_logger.setup_logger.cache_clear()


def exit_of(function: Callable[..., Any], *args: Any) -> int | str | None:
    """Code or message with which a function leaves the process; None if it returns."""
    try:
        function(*args)
    except SystemExit as leave:
        return leave.code
    return None
