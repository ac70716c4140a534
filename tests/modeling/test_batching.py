"""Batches: everything stays at the upper left, with what is asked for beside it."""

from __future__ import annotations

import pytest
import torch

from tagclip.errors import DatasetError
from tagclip.modeling.batching import stack_novel_masks, stack_padded, valid_mask

SIZES = ((2, 5), (4, 3), (4, 5))


def test_planes_are_padded_right_and_below() -> None:
    planes = [torch.arange(1.0, 1 + 2 * h * w).view(2, h, w) for h, w in SIZES]
    batch = stack_padded(planes, (4, 6), -1.0)
    assert batch.shape == (3, 2, 4, 6)
    for plane, padded, (height, width) in zip(planes, batch, SIZES, strict=True):
        assert torch.equal(padded[:, :height, :width], plane)
        assert (padded[:, height:] == -1).all() and (padded[:, :, width:] == -1).all()


def test_the_mask_says_where_the_images_are() -> None:
    mask = valid_mask(SIZES, (4, 6), torch.device("cpu"))
    ones = [torch.ones(size, dtype=torch.bool) for size in SIZES]
    assert torch.equal(mask, stack_padded(ones, (4, 6), False))
    assert mask.sum(dim=(1, 2)).tolist() == [10, 12, 20]


def test_nothing_novel_stands_on_padding() -> None:
    masks = [torch.rand(size, generator=torch.Generator().manual_seed(0)) > 0.5 for size in SIZES]
    inputs = [{"novel_mask": mask} for mask in masks]
    found = stack_novel_masks(inputs, (4, 6), torch.device("cpu"))
    assert found.dtype == torch.bool and torch.equal(found, stack_padded(masks, (4, 6), False))
    with pytest.raises(DatasetError, match=r"b\.png: found no novel_mask"):
        stack_novel_masks([*inputs, {"file_name": "b.png"}], (4, 6), torch.device("cpu"))
