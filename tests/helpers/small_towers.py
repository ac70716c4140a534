"""Every image tower of open_clip with few blocks and random weights, for open_clip and us alike."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import open_clip
import timm
import torch
from torch import nn

from tagclip.utils.skip_init import SkipInit

__all__ = ["TINY_TEXT", "few_blocks", "random_image_tower", "randomize", "small_config"]

# A text tower that costs nothing, where the image tower is tested.
TINY_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
_BLOCKS = 2
# What timm calls the number of blocks, by module.
_DEPTH = {
    "convnext": {"depths": (1, 1, 1, 1)},
    "eva": {"depth": _BLOCKS},
    "vision_transformer": {"depth": _BLOCKS},
    "vision_transformer_hybrid": {"depth": _BLOCKS},
    "vitamin": {"depth": _BLOCKS},
}
_FASTVIT = (1, 1, 1, 1, 1)


@contextmanager
def few_blocks() -> Iterator[None]:
    """Let timm build its networks with two blocks, or one a stage."""
    create = timm.create_model

    def small(name: str, **options: Any) -> nn.Module:
        module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        depth = _DEPTH.get(module, {})
        if module == "fastvit":
            stages = 5 if name in ("fastvit_mci3", "fastvit_mci4") else 4
            depth = {"layers": _FASTVIT[:stages]}
        return create(name, **options | depth)

    with mock.patch.object(timm, "create_model", small):
        yield


def small_config(name: str, **changes: Any) -> dict[str, Any]:
    """open_clip's config of a model with two blocks, where the config says how many there are."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    if isinstance(config["vision_cfg"].get("layers"), int):
        config["vision_cfg"]["layers"] = _BLOCKS
    if "layers" in config["text_cfg"]:
        config["text_cfg"]["layers"] = _BLOCKS
    return config | changes


def random_image_tower(name: str, seed: int = 0) -> nn.Module:
    """open_clip's image tower of a model with few blocks, nothing in it zero, one or equal."""
    config = small_config(name)
    vision = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    with few_blocks(), SkipInit():
        tower = open_clip.model._build_vision_tower(
            config["embed_dim"], vision, config.get("quick_gelu", False)
        )
    return randomize(tower, seed).eval()


@torch.no_grad()
def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Replace weights by random ones of a size that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.3 * noise.abs())
        elif tensor.ndim >= 2 and tensor[0].numel() > 1:
            tensor.copy_(noise * tensor[0].numel() ** -0.5)
        else:
            # Norms and layer scales are near one, biases near zero.
            centre = 1.0 if name.endswith(("weight", "gamma", "gamma_1", "gamma_2")) else 0.0
            tensor.copy_(centre + 0.2 * noise)
    return module
