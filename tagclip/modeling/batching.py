"""One padded tensor out of the images, labels and masks of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tagclip.errors import DatasetError

__all__ = ["stack_novel_masks", "stack_padded", "valid_mask"]


def stack_padded(planes: Sequence[Tensor], size: Sequence[int], value: float) -> Tensor:
    """Pad N tensors (..., h, w) right and below to ``size`` and stack them: (N, ..., H, W)."""
    margins = [(0, size[1] - plane.shape[-1], 0, size[0] - plane.shape[-2]) for plane in planes]
    pairs = zip(planes, margins, strict=True)
    return torch.stack([F.pad(plane, margin, value=value) for plane, margin in pairs])


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
