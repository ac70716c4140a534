"""One padded tensor out of the images, labels and masks of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tagclip.errors import DatasetError

__all__ = ["pad", "stack_novel_masks", "stack_padded", "valid_mask"]


def pad(plane: Tensor, height: int, width: int, value: float) -> Tensor:
    """Pad (..., h, w) with ``value`` at the right and bottom to (..., height, width)."""
    rows, columns = height - plane.shape[-2], width - plane.shape[-1]
    return F.pad(plane, (0, columns, 0, rows), value=value) if rows or columns else plane


def stack_padded(planes: Sequence[Tensor], size: Sequence[int], value: float) -> Tensor:
    """Pad N tensors (..., h, w) of any sizes to ``size`` and stack them: (N, ..., H, W)."""
    return torch.stack([pad(plane, size[0], size[1], value) for plane in planes])


def valid_mask(
    sizes: Sequence[tuple[int, int]], padded_size: Sequence[int], device: torch.device
) -> Tensor:
    """Return (N, H, W) bool, True inside the (height, width) of each image."""
    mask = torch.zeros(len(sizes), *padded_size, dtype=torch.bool, device=device)
    for plane, (rows, columns) in zip(mask, sizes, strict=True):
        plane[:rows, :columns] = True
    return mask


def stack_novel_masks(
    batched_inputs: Sequence[dict[str, Any]], size: Sequence[int], device: torch.device
) -> Tensor:
    """Return (N, H, W) bool, True on pixels of unseen classes, False on padding.

    Raises:
        DatasetError: an input has no ``novel_mask``.
    """
    for item in batched_inputs:
        if "novel_mask" not in item:
            raise DatasetError(
                f"{item.get('file_name', 'training input')}: found no novel_mask, which "
                "MODEL.TAGCLIP.TRUSTY.TARGET and SELF_TRAINING.REGION novel need; use "
                "ZeroShotDatasetMapper"
            )
    return stack_padded([item["novel_mask"].to(device) for item in batched_inputs], size, False)
