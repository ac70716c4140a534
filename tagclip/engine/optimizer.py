"""Parameter groups and the optimizer."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from tabulate import tabulate
from torch import nn

from tagclip.errors import ConfigError

__all__ = ["build_optimizer", "parameter_groups"]

logger = logging.getLogger(__name__)

_PROMPTS = "backbone.prompts."
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups of one learning rate and weight decay.

    Args:
        cfg: reads ``SOLVER``.
        model: parameters below ``backbone.prompts.`` are deep prompts.

    Returns:
        Groups with ``params``, ``lr``, ``weight_decay`` and ``name``; every trainable parameter
        is in exactly one.

    Raises:
        ConfigError: nothing is trainable.
    """
    solver = cfg.SOLVER
    groups: dict[tuple[str, float, float], dict[str, Any]] = {}
    known: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in known:
                continue
            known.add(parameter)
            is_prompt = f"{module_name}.{name}".startswith(_PROMPTS)
            part = "deep prompts" if is_prompt else "head"
            lr = solver.BASE_LR * (solver.PROMPT_LR_FACTOR if is_prompt else 1.0)
            decay = solver.WEIGHT_DECAY
            if isinstance(module, _NORMS):
                decay = solver.WEIGHT_DECAY_NORM
            elif name == "bias" and solver.WEIGHT_DECAY_BIAS is not None:
                decay = solver.WEIGHT_DECAY_BIAS
            group = groups.setdefault(
                (part, lr, decay), {"params": [], "lr": lr, "weight_decay": decay, "name": part}
            )
            group["params"].append(parameter)
    if not groups:
        raise ConfigError(
            "MODEL.CLIP.PROMPT.NUM_TOKENS 0 and a head without parameters leave nothing to train"
        )
    return list(groups.values())


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``SOLVER.OPTIMIZER`` over the trainable parameters and log what it trains.

    Raises:
        ConfigError: the optimizer is unknown.
    """
    groups = parameter_groups(cfg, model)
    if cfg.SOLVER.OPTIMIZER == "ADAMW":
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(
            groups, cfg.SOLVER.BASE_LR, betas=tuple(cfg.SOLVER.ADAM_BETAS), eps=1e-8
        )
    elif cfg.SOLVER.OPTIMIZER == "SGD":
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(
            groups, cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM
        )
    else:
        raise ConfigError(
            f"SOLVER.OPTIMIZER: found {cfg.SOLVER.OPTIMIZER!r}, expected ADAMW or SGD"
        )
    _log_table(groups, model)
    return optimizer


def _log_table(groups: list[dict[str, Any]], model: nn.Module) -> None:
    rows = [
        (g["name"], len(g["params"]), _count(g["params"]), g["lr"], g["weight_decay"])
        for g in groups
    ]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    rows.append(("frozen CLIP", len(frozen), _count(frozen), "-", "-"))
    header = ("part", "tensors", "parameters", "lr", "weight decay")
    logger.info("What is trained:\n%s", tabulate(rows, header, intfmt=","))


def _count(parameters: list[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
