"""Config values that would fail late or in a riddle."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

from tagclip.config.choices import require_choice
from tagclip.errors import ConfigError
from tagclip.evaluation.saved_predictions import FORMATS as PREDICTION_FORMATS

__all__ = ["amp_dtype", "check_values"]

_AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def check_values(cfg: CfgNode) -> None:
    """Check the keys that nothing else checks before it uses them.

    Raises:
        ConfigError: a value is out of its range.
    """
    if not 0 <= cfg.SEED < 2**32:
        raise ConfigError(f"SEED: found {cfg.SEED}, expected 0 to 2**32 - 1, or -1 to draw one")
    if cfg.SOLVER.MAX_ITER < 1:
        raise ConfigError(f"SOLVER.MAX_ITER: found {cfg.SOLVER.MAX_ITER}, expected at least 1")
    if cfg.DATALOADER.NUM_WORKERS < 0:
        raise ConfigError(
            f"DATALOADER.NUM_WORKERS: found {cfg.DATALOADER.NUM_WORKERS}, expected 0 or more"
        )
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ConfigError(
            f"MODEL.DEVICE: found {cfg.MODEL.DEVICE!r}, expected cuda or cpu"
        ) from error
    require_choice(cfg.TEST.SAVE_PREDICTIONS, "TEST.SAVE_PREDICTIONS", PREDICTION_FORMATS)
    _check_model(cfg)
    amp_dtype(cfg)


def _check_model(cfg: CfgNode) -> None:
    for key, found in (
        ("MODEL.CLIP.PROMPT.DROPOUT", cfg.MODEL.CLIP.PROMPT.DROPOUT),
        ("MODEL.TAGCLIP.DROPOUT", cfg.MODEL.TAGCLIP.DROPOUT),
        ("MODEL.TAGCLIP.TRUSTY.CONV.DROPOUT", cfg.MODEL.TAGCLIP.TRUSTY.CONV.DROPOUT),
    ):
        if not 0 <= found <= 1:
            raise ConfigError(f"{key}: found {found}, expected a probability, 0 to 1")
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
    for key, found in (("STD", cfg.MODEL.PIXEL_STD), ("MEAN", cfg.MODEL.PIXEL_MEAN)):
        if len(found) != 3 or not all(isinstance(value, int | float) for value in found):
            raise ConfigError(f"MODEL.PIXEL_{key}: found {found}, expected three numbers")


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Type of autocast, None without.

    Raises:
        ConfigError: the type is unknown.
    """
    dtype = cfg.SOLVER.AMP.DTYPE
    if dtype not in _AMP_DTYPES:
        raise ConfigError(f"SOLVER.AMP.DTYPE: found {dtype!r}, expected {' or '.join(_AMP_DTYPES)}")
    return _AMP_DTYPES[dtype] if cfg.SOLVER.AMP.ENABLED else None
