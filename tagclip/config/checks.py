"""Checks of config values: mistakes come out before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, reduce
from operator import getitem
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg

from tagclip.config.defaults import config_keys
from tagclip.config.keys import Key
from tagclip.errors import ConfigError
from tagclip.utils.text import counted, did_you_mean

__all__ = [
    "available_device",
    "bounds",
    "check_config",
    "check_device",
    "check_registered",
    "check_train_sizes",
    "check_training",
    "check_value",
    "choices",
    "expected_value",
    "unread_keys",
]

_DEVICE = "MODEL.DEVICE"
_OF_DETECTRON2 = ", a part of detectron2's own models"


def choices(name: str) -> tuple[str, ...]:
    """Return the words that a config key may be."""
    return _all_keys()[name].choices


def bounds(name: str) -> tuple[float | None, float | None]:
    """Return the inclusive bounds of a config key; None for one that it does not have."""
    key = _all_keys()[name]
    return key.low, key.high


def expected_value(name: str, default: Any) -> str:
    """Say in words what a config key may be, whether it is in the table or detectron2's alone.

    Args:
        name: such as ``SOLVER.MAX_ITER``; or the name of a section.
        default: its value before.
    """
    if isinstance(default, CfgNode):
        return f"a key of this section and its value, such as {name}.{next(iter(default))}"
    default = list(default) if isinstance(default, tuple) else default
    return _all_keys().get(name, Key(name, default, "")).expected


def check_value(name: str, value: Any) -> None:
    """Check a value that did not come from a config, such as an argument of a constructor.

    Args:
        name: the config key that says the same, such as ``MODEL.TAGCLIP.RELATION``.
        value: what was given.

    Raises:
        ConfigError: the key cannot have this value.
    """
    _all_keys()[name].check(value)


def check_config(cfg: CfgNode) -> None:
    """Check every key of the table, and what several keys have to do with each other.

    Raises:
        ConfigError: names a key, its value and what is expected; or it is no config with these
            keys.
    """
    keys = _all_keys()
    if not isinstance(cfg, CfgNode):
        raise ConfigError(
            f"config: found {cfg!r:.80}, expected what tagclip.load_config returns; a checkpoint "
            "is for TagCLIPPredictor.from_checkpoint"
        )
    for key in keys.values():
        if not _has(cfg, key.path):
            raise ConfigError(
                f"config: found no {key.name}, expected the keys of tagclip, too; make it with "
                "tagclip.load_config, or add_tagclip_config"
            )
        if not key.when or reduce(getitem, keys[key.when].path, cfg):
            key.check(reduce(getitem, key.path, cfg))
    solver = cfg.SOLVER
    if solver.REFERENCE_WORLD_SIZE and solver.IMS_PER_BATCH % solver.REFERENCE_WORLD_SIZE:
        raise ConfigError(
            f"SOLVER.REFERENCE_WORLD_SIZE: found {solver.REFERENCE_WORLD_SIZE}, expected a divisor "
            f"of SOLVER.IMS_PER_BATCH ({solver.IMS_PER_BATCH}), or 0"
        )
    if solver.OPTIMIZER == "SGD" and solver.NESTEROV and not solver.MOMENTUM:
        raise ConfigError(
            "SOLVER.NESTEROV: found True with MOMENTUM 0, expected False or a momentum above 0"
        )
    _check_device_name(cfg.MODEL.DEVICE)
    _check_once("DATASETS.TEST", cfg.DATASETS.TEST)
    _check_once("PROJECTS", cfg.PROJECTS)
    if cfg.TEST.AUG.ENABLED:
        _check_once("TEST.AUG.MIN_SIZES", cfg.TEST.AUG.MIN_SIZES)
    expected = cfg.TEST.EXPECTED_RESULTS
    if expected and (len(cfg.DATASETS.TEST) != 1 or not all(map(_is_expectation, expected))):
        raise ConfigError(
            f"TEST.EXPECTED_RESULTS: found {expected!r:.200} for {len(cfg.DATASETS.TEST)} datasets "
            "in DATASETS.TEST, expected lists of 'sem_seg', a metric, its value and what it may "
            "differ by (0 to 100 each), for one dataset, such as [['sem_seg', 'mIoU', 54.8, 0.1]]"
        )


def _has(node: Any, path: Sequence[str]) -> bool:
    for part in path:
        if not isinstance(node, CfgNode) or part not in node:
            return False
        node = node[part]
    return True


def _check_once(key: str, values: Sequence[str | int]) -> None:
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"{key}: found {twice!r} {values.count(twice)} times, expected each once; leave the "
            "others out"
        )


def _is_expectation(row: Any) -> bool:
    """Whether detectron2's ``verify_results`` can compare this with a result of one dataset."""
    return (
        isinstance(row, (list, tuple))
        and [type(item) for item in row[:2]] == [str, str]
        and row[0] == "sem_seg"
        and len(row) == 4
        and all(type(item) in (int, float) for item in row[2:])
        # A difference from nan is never too large.
        and 0 <= row[2] <= 100
        and 0 <= row[3] <= 100
    )


def _check_device_name(device: str, option: str = _DEVICE) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, ValueError):
        found = None
    # torch takes cpu:5 for the one that there is.
    is_cpu = found is not None and found.type == "cpu" and not found.index
    if not is_cpu and (found is None or found.type != "cuda"):
        raise ConfigError(f"{option}: found {device!r}, expected cuda or cpu")
    return found


def available_device(device: str, option: str = _DEVICE) -> str:
    """Return a device that this machine has: the CPU in the place of a GPU where there is none.

    Args:
        device: its name.
        option: where it was asked for, for messages.

    Raises:
        ConfigError: it is neither a GPU of CUDA nor the CPU, or the machine has fewer GPUs.
    """
    found = _check_device_name(device, option)
    if found.type == "cpu":
        return device
    if not torch.cuda.is_available():
        return "cpu"
    count = torch.cuda.device_count()
    if (found.index or 0) >= count:
        raise ConfigError(
            f"{option}: found {device!r} on a machine with {count} GPUs, expected cuda, cpu, or "
            f"cuda:N with an N below {count}"
        )
    return device


def check_device(device: str, option: str = _DEVICE) -> None:
    """Refuse a device that this machine has not.

    Args:
        device: as of `available_device`.
        option: as there.

    Raises:
        ConfigError: see `available_device`; or there is no GPU.
    """
    if available_device(device, option) != device:
        raise ConfigError(f"{option}: found {device!r} on a machine without GPU, expected cpu")


def check_training(cfg: CfgNode) -> None:
    """Check what keys together say about a training; `check_config` has checked each.

    Raises:
        ConfigError: nothing would be learned, the learning rate would rise to its floor, or see
            `check_train_sizes`.
    """
    check_train_sizes(cfg)
    solver, tagclip = cfg.SOLVER, cfg.MODEL.TAGCLIP
    trusty, loss = tagclip.TRUSTY, tagclip.LOSS
    if solver.MIN_LR > solver.BASE_LR:
        raise ConfigError(
            f"SOLVER.MIN_LR: found {solver.MIN_LR:g}, expected at most SOLVER.BASE_LR "
            f"({solver.BASE_LR:g}), from which the learning rate falls; lower it"
        )
    # Of CLIP alone, only the map is trained.
    is_decoded = cfg.MODEL.CLIP.LAST_BLOCK == "clip"
    own_head = trusty.KIND if trusty.ENABLED and trusty.KIND != "token" else ""
    in_loss = loss.MASK or loss.DICE or (loss.TRUSTY and trusty.ENABLED and not own_head)
    if is_decoded and not in_loss:
        apart = f" with TRUSTY.KIND {own_head}, whose map learns apart" if own_head else ""
        raise ConfigError(
            f"MODEL.TAGCLIP.LOSS: found MASK and DICE 0{apart}, expected one of them above 0: no "
            "class would be learned"
        )
    # A map that learns apart does so beside a decoder that has learned, or beside none.
    rates = {"SOLVER.BASE_LR": solver.BASE_LR} if is_decoded else {}
    if own_head == "conv" and (cfg.MODEL.WEIGHTS or not is_decoded):
        rates["MODEL.TAGCLIP.TRUSTY.CONV.BASE_LR"] = trusty.CONV.BASE_LR
    # A rate that vanishes beside float32 weights is none.
    if rates and not any(map(np.float32, rates.values())):
        key, rate = next(iter(rates.items()))
        raise ConfigError(
            f"{key}: found {rate:.3g}, expected a learning rate above 0, also in float32: "
            f"{'no class' if is_decoded else 'nothing'} would be learned"
        )


def check_train_sizes(cfg: CfgNode) -> None:
    """Check how small the factor of INPUT.SCALE_RANGE makes training images.

    Raises:
        ConfigError: some would have a shorter side than INPUT.MIN_SIZE_TRAIN may be.
    """
    inputs, least = cfg.INPUT, _all_keys()["INPUT.MIN_SIZE_TRAIN"].low
    bounds = [("INPUT.MIN_SIZE_TRAIN", inputs.MIN_SIZE_TRAIN, min(inputs.MIN_SIZE_TRAIN))]
    if inputs.MAX_SIZE_TRAIN:
        bounds.append(("INPUT.MAX_SIZE_TRAIN", inputs.MAX_SIZE_TRAIN, inputs.MAX_SIZE_TRAIN))
    for key, found, bound in bounds:
        # Rounded as it is where images are resized.
        side = int(bound * inputs.SCALE_RANGE[0])
        if side < least:
            raise ConfigError(
                f"INPUT.SCALE_RANGE: found {list(inputs.SCALE_RANGE)} with {key} "
                f"{_lists(found)}, which makes sides of {counted(max(1, side), 'pixel')}, expected "
                f"at least {least}; raise one of them"
            )


def unread_keys(cfg: CfgNode) -> list[str]:
    """Keys of detectron2's own models that are set although no part of TagCLIP reads them."""
    own, found = _all_keys(), []
    left: list[tuple[str, CfgNode, CfgNode]] = [("", get_cfg(), cfg)]
    while left:
        prefix, default, node = left.pop()
        for key, value in default.items():
            name = f"{prefix}{key}"
            if isinstance(value, CfgNode):
                left.append((f"{name}.", value, node[key]))
            # The precision of matrices is set by detectron2 itself, where it knows that key.
            elif name in own or name == "FLOAT32_PRECISION":
                continue
            elif _lists(node[key]) != _lists(value):
                found.append(name)
    return sorted(found)


def _lists(value: Any) -> Any:
    """A value without tuples, which a yaml file does not keep."""
    return list(map(_lists, value)) if isinstance(value, (list, tuple)) else value


def check_registered(cfg: CfgNode) -> None:
    """Check the names of the model's parts, once PROJECTS are imported.

    Raises:
        ConfigError: detectron2's registries lack one, or it is a part of detectron2's own models,
            which know no class vectors.
    """
    # Takes seconds, which reading a config need not wait for.
    from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

    for key, found, registry in (
        ("META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
        ("SEM_SEG_HEAD.NAME", cfg.MODEL.SEM_SEG_HEAD.NAME, SEM_SEG_HEADS_REGISTRY),
    ):
        parts = dict(registry)
        own = [name for name in parts if not parts[name].__module__.startswith("detectron2.")]
        # Not in the order in which modules happen to be imported.
        own.sort()
        if found not in own:
            raise ConfigError(
                f"MODEL.{key}: found {found!r}{_OF_DETECTRON2 * (found in parts)}, expected "
                f"{' or '.join(own)}{did_you_mean(found, own)}; check it, or name its project in "
                "PROJECTS"
            )


@cache
def _all_keys() -> dict[str, Key]:
    return {name: key for keys in config_keys().values() for name, key in keys.items()}
