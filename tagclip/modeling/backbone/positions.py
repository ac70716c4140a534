"""Position tables of image towers for other sizes of the grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["resize_positions", "square_grid"]


def square_grid(table: Tensor) -> tuple[int, int] | None:
    """(rows, columns) of a position table (1 + side^2, W) as CLIP has it; None: it is no such."""
    if table.ndim != 2 or len(table) < 2:
        return None
    side = math.isqrt(len(table) - 1)
    return (side, side) if side**2 == len(table) - 1 else None


def resize_positions(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], mode: str, num_prefix: int = 1
) -> Tensor:
    """Resize a position table (docs/method.md, section 3); what stands before the map is kept.

    Args:
        table: (P + rows * columns, W), the class token's position first, then the map row by row.
        old: (rows, columns) of the table.
        new: (rows, columns) of the result.
        mode: ``bilinear`` as the released code, or ``bicubic`` as open_clip, with antialiasing.
        num_prefix: P, rows of the class token and the like.

    Returns:
        (P + rows * columns of ``new``, W); ``table`` itself if the two are equal.
    """
    if old == new:
        return table
    patches = table[num_prefix:].T.unflatten(1, old)[None]
    # torch 2.14 antialiases a map of one column wrongly on the CPU, of one row rightly.
    transpose = mode == "bicubic" and new[1] == 1
    if transpose:
        patches, new = patches.mT, new[::-1]
    resized = F.interpolate(
        patches, new, mode=mode, align_corners=False, antialias=mode == "bicubic"
    )
    resized = resized.mT if transpose else resized
    return torch.cat([table[:num_prefix], resized[0].flatten(1).T])
