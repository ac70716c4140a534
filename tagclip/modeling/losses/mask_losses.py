"""Focal and Dice loss of low-resolution logits against full-resolution labels.

Value and gradient are formed in one pass, a few classes at a time: no target, logit or gradient
plane of all classes ever exists. The bilinear upsampling is separable, U = A_h Z A_w^T, so the
gradient with respect to the low-resolution logits is A_h^T (dL/dU) A_w.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tagclip.modeling.losses.focal import Focal, LabelledPixels

__all__ = ["LabelGrid", "MaskLosses", "interpolation_matrix", "strided"]

# Full-resolution float32 planes per class that are alive at the peak of `_focal` or `_dice`.
_PLANES = 6
# More would leave a CPU's cache, which takes twice as long.
_CPU_WORKSPACE_MIB = 24


def strided(size: int, stride: int) -> slice:
    """Return every ``stride``-th of ``size`` places, from the middle of a step; never none."""
    return slice(min(stride, size) // 2, None, stride)


# A matrix that is made under inference mode could not take part in a later backward pass.
@lru_cache(maxsize=16)
@torch.inference_mode(False)
def interpolation_matrix(
    size: int, source: int, stride: int = 1, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the linear map of bilinear upsampling (align_corners False) along one axis.

    Args:
        size: length of the result.
        source: length of the input.
        stride: keep the rows of `strided`.
        device: where the matrix lives.

    Returns:
        (kept rows, source) float32; rows sum to 1.
    """
    position = (torch.arange(size, dtype=torch.float64) + 0.5) * source / size - 0.5
    position = position.clamp(0, source - 1)
    lower = position.floor().long()
    fraction = position - lower
    rows = torch.arange(size)
    matrix = torch.zeros(size, source, dtype=torch.float64)
    matrix[rows, lower] = 1 - fraction
    matrix[rows, (lower + 1).clamp(max=source - 1)] += fraction
    return matrix[strided(size, stride)].float().to(device)


@dataclass(frozen=True)
class LabelGrid:
    """Labels on the grid where the loss is computed, and how logits get there.

    Attributes:
        labels: (N, H, W) int32 class indices; anything outside [0, K) is no class.
        counted: (N, H, W) bool, pixels that take part; None counts all of them.
        rows: (H, h) upsampling matrix.
        columns: (W, w) upsampling matrix.
        open_classes: (K,) bool, classes of which pixels without label are no negatives; None: they
            are of every class.
    """

    labels: Tensor
    counted: Tensor | None
    rows: Tensor
    columns: Tensor
    open_classes: Tensor | None = None

    def upsample(self, logits: Tensor) -> Tensor:
        """(..., h, w) -> (..., H, W)."""
        return self.rows @ logits @ self.columns.T

    def adjoint(self, gradient: Tensor) -> Tensor:
        """(..., H, W) gradient of upsampled logits -> (..., h, w)."""
        return self.rows.T @ (gradient @ self.columns)

    def mask(self, images: int | Tensor, classes: slice | Tensor) -> Tensor | None:
        """Return which pixels count, broadcastable to (c, H, W) bool; None if all do.

        Args:
            images: one image, or (c,) one for each class.
            classes: c classes.
        """
        counted = None if self.counted is None else self.counted[images]
        if self.open_classes is None:
            return counted
        is_open = self.open_classes[classes].view(-1, 1, 1)
        mask = (self.labels[images] >= 0) | ~is_open
        return mask if counted is None else mask & counted

    def pixels(self) -> Tensor:
        """(N,) float32: how many pixels of each image take part, at least 1."""
        if self.counted is None:
            n, height, width = self.labels.shape
            return torch.full((n,), float(height * width), device=self.labels.device)
        return self.counted.sum(dim=(1, 2)).clamp(min=1).float()

    def present(self, classes: int) -> Tensor:
        """(N, K) float32: number of pixels of every class in every image."""
        n = len(self.labels)
        inside = (self.labels >= 0) & (self.labels < classes)
        if self.counted is not None:
            inside &= self.counted
        image = torch.arange(n, device=self.labels.device).view(-1, 1, 1) * (classes + 1)
        index = torch.where(inside, self.labels, classes) + image
        counts = torch.bincount(index.flatten(), minlength=n * (classes + 1))
        return counts.view(n, classes + 1)[:, :classes].float()


class MaskLosses(torch.autograd.Function):
    """(N, K, h, w) logits -> focal sum over classes and Dice sum over present classes.

    Focal is averaged over the counted pixels of each image and summed over images and classes;
    Dice is summed over (image, present class) pairs. Only the logits are differentiable, once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        grid: LabelGrid,
        counts: Tensor,
        focal: Focal,
        workspace_mib: float,
    ) -> tuple[Tensor, Tensor]:
        """See the class.

        Args:
            ctx: autograd's context.
            logits: (N, K, h, w) float32.
            grid: where the labels are.
            counts: (N, K) pixels of each class, `LabelGrid.present`.
            focal: constants of the focal loss.
            workspace_mib: memory for full-resolution planes.
        """
        pixels = grid.rows.shape[0] * grid.columns.shape[0]
        if logits.device.type == "cpu":
            workspace_mib = min(workspace_mib, _CPU_WORKSPACE_MIB)
        step = max(1, int(workspace_mib * 2**20 / (4 * pixels * _PLANES)))
        focal_sum, focal_gradient = _focal(logits, grid, focal, step)
        dice_sum, dice_gradient = _dice(logits, grid, counts, step)
        ctx.save_for_backward(focal_gradient, dice_gradient)
        return focal_sum, dice_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, focal: Tensor, dice: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the stored gradients."""
        focal_gradient, dice_gradient = ctx.saved_tensors
        return focal * focal_gradient + dice * dice_gradient, None, None, None, None


def _focal(logits: Tensor, grid: LabelGrid, focal: Focal, step: int) -> tuple[Tensor, Tensor]:
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    gradient = torch.empty_like(logits)
    weight = 1 / grid.pixels()
    for image in range(len(logits)):
        pixels = LabelledPixels(grid.labels[image], logits.shape[1])
        for classes in _chunks(logits.shape[1], step):
            # The planes of a chunk die in its own function, before the next are made.
            value, slope = _focal_chunk(logits[image], grid, focal, pixels, image, classes)
            total += value * weight[image]
            gradient[image, classes] = slope * weight[image]
    return total.float(), gradient


def _focal_chunk(
    logits: Tensor,
    grid: LabelGrid,
    focal: Focal,
    pixels: LabelledPixels,
    image: int,
    classes: slice,
) -> tuple[Tensor, Tensor]:
    full = grid.upsample(logits[classes])
    value, slope = focal.negative(full)
    focal.put_positive(value, slope, full, pixels.places(classes))
    mask = grid.mask(image, classes)
    if mask is not None:
        value *= mask
        slope *= mask
    return _plane_sums(value).sum(), grid.adjoint(slope)


def _dice(logits: Tensor, grid: LabelGrid, counts: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Sum of 1 - (2 I + 1) / (P + T + 1) over present (image, class) pairs, and its gradient."""
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    gradient = torch.zeros_like(logits)
    images, classes = counts.nonzero(as_tuple=True)
    for pairs in _chunks(len(images), step):
        image, label = images[pairs], classes[pairs]
        value, slope = _dice_chunk(logits, grid, counts, image, label)
        total += value
        gradient[image, label] = slope
    return total.float(), gradient


def _dice_chunk(
    logits: Tensor, grid: LabelGrid, counts: Tensor, image: Tensor, label: Tensor
) -> tuple[Tensor, Tensor]:
    p = torch.sigmoid(grid.upsample(logits[image, label]))
    slope = p * (1 - p)
    mask = grid.mask(image, label)
    if mask is not None:
        p *= mask
        slope *= mask
    inside = grid.labels[image] == label.view(-1, 1, 1)
    intersection = _plane_sums(p * inside)
    union = _plane_sums(p) + counts[image, label] + 1
    # d(-2 (I + 1/2) / union) needs the sums, which are known only now: two maps, then one.
    everywhere = ((2 * intersection + 1) / union**2).float().view(-1, 1, 1)
    on_label = (2 / union).float().view(-1, 1, 1)
    gradient = everywhere * grid.adjoint(slope) - on_label * grid.adjoint(slope.mul_(inside))
    return (1 - (2 * intersection + 1) / union).sum(), gradient


def _plane_sums(planes: Tensor) -> Tensor:
    """(c, H, W) float32 -> (c,) float64: rows in float32, so that no plane is copied."""
    return planes.sum(dim=2).sum(dim=1, dtype=torch.float64)


def _chunks(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
