"""Checkpoints of the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from tagclip import TagCLIPCheckpointer
from tagclip.checkpoint import checkpoint_metadata


def build(cfg: CfgNode, seed: int = 0, **change: Any) -> tuple[CfgNode, nn.Module]:
    """A model with random trained weights; `change` are keys, __ for a dot."""
    cfg = cfg.clone()
    cfg.merge_from_list([x for k, v in change.items() for x in (k.replace("__", "."), v)])
    torch.manual_seed(seed)
    return cfg, build_model(cfg)


def checkpointer(
    cfg: CfgNode, model: nn.Module, folder: Path, **arguments: Any
) -> TagCLIPCheckpointer:
    """Its metadata are those of the config and the model."""
    metadata = checkpoint_metadata(cfg, model)
    return TagCLIPCheckpointer(model, str(folder), metadata=metadata, **arguments)


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the trainable parameters, by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One update with some gradient everywhere."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """The same names and bit for bit the same tensors."""
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def save_tiny(cfg: CfgNode, folder: Path) -> Path:
    """Save the tiny model with seed 1 as model_final; return the file."""
    cfg, model = build(cfg, seed=1)
    checkpointer(cfg, model, folder).save("model_final")
    return folder / "model_final.pth"
