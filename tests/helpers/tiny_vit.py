"""What CLIPViT is built from for the tiny CLIP, and batches for it."""

from __future__ import annotations

import torch
from open_clip.model import CLIP
from torch import Tensor

SIZES = {
    "width": 64,
    "layers": 4,
    "heads": 4,
    "hidden": 256,
    "patch_size": 16,
    "grid_size": (4, 4),
    "embed_dim": 32,
    "quick_gelu": True,
}


def vision_state(model: CLIP) -> dict[str, Tensor]:
    """The tensors of its image tower."""
    return dict(model.visual.state_dict())


def images(rows: int, columns: int, count: int = 2, patch: int = 16) -> Tensor:
    """(N, 3, H, W) float32 noise of so many patches, the same for the same grid."""
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    return torch.randn(count, 3, rows * patch, columns * patch, generator=generator)
