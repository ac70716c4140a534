"""Parameter groups and the optimizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from tabulate import tabulate
from torch import nn

from tagclip.errors import ConfigError

__all__ = ["TRUSTY_HEAD", "build_optimizer", "parameter_groups"]

logger = logging.getLogger(__name__)

_PROMPTS = "backbone.prompts."
# Has an optimizer of its own: `tagclip.engine.trusty_training`.
TRUSTY_HEAD = "sem_seg_head.trusty_head."
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups of one learning rate and weight decay.

    The released code trains everything with one rate and decay (docs/method.md, section 7);
    ``SOLVER.PROMPT_LR_FACTOR``, ``BIAS_LR_FACTOR``, ``WEIGHT_DECAY_NORM`` and
    ``WEIGHT_DECAY_BIAS`` depart from that.

    Args:
        cfg: reads ``SOLVER``.
        model: not wrapped; parameters below ``backbone.prompts.`` are deep prompts.

    Returns:
        Groups with ``params``, ``lr``, ``weight_decay`` and ``name``; every trainable parameter
        but those of a convolutional trusty head is in exactly one. Where that head is all there is
        to train, one group is empty.

    Raises:
        ConfigError: nothing is trainable.
    """
    solver = cfg.SOLVER
    groups: dict[tuple[str, float, float], dict[str, Any]] = {}
    for name, parameter, module in _trainable(model):
        is_prompt, is_bias = name.startswith(_PROMPTS), name.endswith("bias")
        part = "deep prompts" if is_prompt else "head"
        lr = solver.BASE_LR * (solver.PROMPT_LR_FACTOR if is_prompt else 1.0)
        decay = solver.WEIGHT_DECAY
        if isinstance(module, _NORMS):
            decay = solver.WEIGHT_DECAY_NORM
        elif is_bias:
            lr *= solver.BIAS_LR_FACTOR
            if solver.WEIGHT_DECAY_BIAS is not None:
                decay = solver.WEIGHT_DECAY_BIAS
        group = groups.setdefault(
            (part, lr, decay), {"params": [], "lr": lr, "weight_decay": decay, "name": part}
        )
        group["params"].append(parameter)
    if not groups:
        if any(name.startswith(TRUSTY_HEAD) for name, _ in model.named_parameters()):
            return [{"params": [], "lr": solver.BASE_LR, "weight_decay": 0.0, "name": "head"}]
        raise ConfigError(
            "MODEL.CLIP.PROMPT.NUM_TOKENS 0 and a head without parameters leave nothing to train; "
            "evaluate with --eval-only"
        )
    return list(groups.values())


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """Yield (full name, parameter, the module that owns it), shared parameters once.

    The convolutional trusty head is left out: it has an optimizer of its own.
    """
    known: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            is_own = name.startswith(TRUSTY_HEAD)
            if parameter.requires_grad and parameter not in known and not is_own:
                known.add(parameter)
                yield name, parameter, module


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``SOLVER.OPTIMIZER`` over the trainable parameters and log what it trains.

    Args:
        cfg: whose values `tagclip.config.check_config` has checked.
        model: with the parameters.

    Raises:
        ConfigError: nothing is trainable.
    """
    groups, solver = parameter_groups(cfg, model), cfg.SOLVER
    if solver.OPTIMIZER == "ADAMW":
        betas = tuple(map(float, solver.ADAM_BETAS))
        kind, options = torch.optim.AdamW, {"betas": betas, "eps": 1e-8}
    else:
        kind = torch.optim.SGD
        options = {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    optimizer = maybe_add_gradient_clipping(cfg, kind)(groups, solver.BASE_LR, **options)
    _log_table(groups, model, cfg.MODEL.TAGCLIP.TRUSTY.CONV)
    return optimizer


def _log_table(groups: list[dict[str, Any]], model: nn.Module, conv: CfgNode) -> None:
    own = [p for name, p in model.named_parameters() if name.startswith(TRUSTY_HEAD)]
    parts = [(g["name"], g["params"], g["lr"], g["weight_decay"]) for g in groups]
    parts.append(("trusty head, own optimizer", own, conv.BASE_LR, conv.WEIGHT_DECAY))
    rows = [(part[0], len(part[1]), _count(part[1]), *part[2:]) for part in parts if part[1]]
    trained = [parameter for part in parts for parameter in part[1]]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    rows.append(("trained", len(trained), _count(trained), "", ""))
    rows.append(("frozen CLIP", len(frozen), _count(frozen), "", ""))
    header = ("part", "tensors", "parameters", "lr", "weight decay")
    logger.info("What is trained:\n%s", tabulate(rows, header, intfmt=","))


def _count(parameters: list[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
