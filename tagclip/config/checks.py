"""Checks of config values: mistakes come out before anything is built."""

from __future__ import annotations

from functools import cache, reduce
from operator import getitem
from typing import Any

import torch
from detectron2.config import CfgNode

from tagclip.config.defaults import config_keys
from tagclip.config.keys import Key
from tagclip.errors import ConfigError

__all__ = ["check_config", "check_registered", "check_value", "choices"]


def choices(name: str) -> tuple[str, ...]:
    """Return the words that a config key may be."""
    return _all_keys()[name].choices


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
        ConfigError: names a key, its value and what is expected.
    """
    keys = _all_keys()
    for key in keys.values():
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
    try:
        torch.device(cfg.MODEL.DEVICE)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"MODEL.DEVICE: found {cfg.MODEL.DEVICE!r}, expected cuda or cpu"
        ) from error


def check_registered(cfg: CfgNode) -> None:
    """Check the names of the model's parts, once PROJECTS are imported.

    Raises:
        ConfigError: detectron2's registries lack one.
    """
    # Takes seconds, which reading a config need not wait for.
    from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

    for key, found, registry in (
        ("META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
        ("SEM_SEG_HEAD.NAME", cfg.MODEL.SEM_SEG_HEAD.NAME, SEM_SEG_HEADS_REGISTRY),
    ):
        if found not in registry:
            raise ConfigError(
                f"MODEL.{key}: found {found!r}, expected a registered name; "
                "check it, or name its project in PROJECTS"
            )


@cache
def _all_keys() -> dict[str, Key]:
    return {name: key for keys in config_keys().values() for name, key in keys.items()}
