"""Focal loss (Lin et al., arXiv 1708.02002) and its derivative, on planes of a few classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Focal", "LabelledPixels", "binary_focal"]


def binary_focal(logits: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss per element: alpha_t (1 - p_t)^gamma BCE.

    Args:
        logits: any shape, float32.
        target: same shape, bool.
        alpha: weight of positives; negatives weigh 1 - alpha.
        gamma: exponent.
    """
    signed = torch.where(target, logits, -logits)
    weight = torch.where(target, alpha, 1 - alpha)
    return weight * torch.sigmoid(-signed).pow(gamma) * F.softplus(-signed)


@dataclass(frozen=True)
class Focal:
    """Constants of the focal loss, and its two sides with their derivatives.

    Attributes:
        alpha: weight of positives; negatives weigh 1 - alpha.
        gamma: exponent.
        compiled: whether `torch.compile` fuses the passes over whole planes.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    compiled: bool = False

    def negative(self, full: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and derivative of pixels that are not of the class: two new tensors."""
        function = _compiled_negative() if self.compiled else _negative
        return function(full, self.alpha, self.gamma)

    def put_positive(self, value: Tensor, slope: Tensor, full: Tensor, places: Tensor) -> None:
        """Replace, in place, loss and derivative at the pixels of each class.

        Args:
            value, slope: of `negative`, contiguous.
            full: (C, H, W) logits.
            places: `LabelledPixels.places`.
        """
        # -u is to a positive what u is to a negative.
        loss, derivative = _negative(-full.flatten()[places], 1 - self.alpha, self.gamma)
        value.view(-1)[places] = loss
        slope.view(-1)[places] = derivative.neg_()


def _negative(full: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """f = (1 - alpha) p^gamma s and f' = (1 - alpha) p^gamma (gamma (1 - p) s + p).

    p = sigmoid(u) and s = softplus(u) = -log(1 - p).
    """
    p = torch.sigmoid(full)
    q = 1 - p
    value = _softplus(full, p, q)
    slope = q.mul_(value).mul_(gamma).add_(p)
    power = (p.square_() if gamma == 2 else p.pow_(gamma)).mul_(1 - alpha)
    return value.mul_(power), slope.mul_(power)


def _softplus(u: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """softplus(u) with p = sigmoid(u) and q = 1 - p known."""
    if u.device.type != "cpu":
        return F.softplus(u)
    # max(u, 0) - log(sigmoid(|u|)): a CPU takes 9 ns for torch's softplus, 1 ns for a logarithm.
    # Its error, 6e-8, vanishes in the loss, which has the factor p^gamma where softplus is small.
    return u.clamp(min=0).sub_(torch.maximum(p, q).log_())


@cache
def _compiled_negative() -> Callable[[Tensor, float, float], tuple[Tensor, Tensor]]:
    # The last chunk is smaller than the others: without dynamic sizes it would be compiled, too.
    return torch.compile(_negative, dynamic=True)


class LabelledPixels:
    """The labelled pixels of an image, sorted by class: each is looked at once, not per chunk."""

    def __init__(self, labels: Tensor, classes: int) -> None:
        """Sort.

        Args:
            labels: (H, W) int32 class indices; anything outside [0, K) is no class.
            classes: K.
        """
        self._labels, self._pixels = labels.flatten().sort()
        bounds = torch.arange(classes + 1, dtype=labels.dtype, device=labels.device)
        self._starts = torch.searchsorted(self._labels, bounds).tolist()
        self._size = labels.numel()

    def places(self, classes: slice) -> Tensor:
        """(P,) int64 places, inside flat (C, H, W) planes of ``classes``, of their own pixels."""
        chosen = slice(self._starts[classes.start], self._starts[classes.stop])
        return (self._labels[chosen].long() - classes.start) * self._size + self._pixels[chosen]
