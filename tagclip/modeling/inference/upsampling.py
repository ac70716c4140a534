"""Bilinear resizing of score planes, align_corners False, no antialiasing."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["resize", "upsample"]


def resize(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) float -> (C, H, W), ``size``; ``planes`` itself if that is its size."""
    if planes.shape[-2:] == tuple(size):
        return planes
    return F.interpolate(planes[None], size, mode="bilinear", align_corners=False)[0]


def upsample(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Do the same, several times as fast on a CPU where H is a multiple of h.

    Only the h rows are resized along their length. The rows of the result are blends of two of
    them, which takes a pass over whole rows instead of four gathered values per pixel. Not
    differentiable.

    Args:
        planes: (C, h, w) float, such as logits of patches.
        size: (H, W) in pixels.

    Returns:
        (C, H, W).
    """
    rows, (height, width) = planes.shape[-2], size
    factor, rest = divmod(height, rows)
    if rest or factor < 2:
        return resize(planes, size)
    wide = resize(planes, (rows, width))
    full = wide.new_empty(len(planes), height, width)
    # Row y of the result lies at (y + 1/2) / factor - 1/2 among the rows; beyond their ends, the
    # last ones go on.
    first, last = factor // 2, height - (factor - factor // 2)
    full[:, :first] = wide[:, :1]
    full[:, last:] = wide[:, -1:]
    between = full[:, first:last].view(len(planes), rows - 1, factor, width)
    weights = _row_weights(factor, wide.dtype, wide.device)
    torch.lerp(wide[:, :-1, None], wide[:, 1:, None], weights, out=between)
    return full


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _row_weights(factor: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(factor, 1): how far each row between two others is on its way to the second."""
    steps = torch.arange(factor, dtype=dtype, device=device)[:, None]
    return (factor // 2 + steps + 0.5) / factor - 0.5
