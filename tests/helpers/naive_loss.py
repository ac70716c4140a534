"""The loss written plainly in float64: dense one-hot targets and F.interpolate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tagclip.modeling.losses.seg_loss import SegTargets


def random_targets(
    classes: int,
    size: tuple[int, int],
    images: int = 2,
    ignored: float = 0.2,
    padding: int = 0,
    seed: int = 0,
) -> SegTargets:
    """Random labels (value 255 or `classes` is ignored), ``padding`` invalid columns."""
    generator = torch.Generator().manual_seed(seed)
    ignore = 255 if classes <= 255 else classes
    labels = torch.randint(0, classes, (images, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = ignore
    valid = torch.ones(labels.shape, dtype=torch.bool)
    if padding:
        labels[:, :, -padding:] = ignore
        valid[:, :, -padding:] = False
    trusty = torch.rand(labels.shape, generator=generator) < 0.6
    dtype = torch.uint8 if ignore == 255 else torch.int32
    return SegTargets(labels=labels.to(dtype), valid=valid, trusty=trusty & valid, ignore=ignore)


def naive_losses(
    class_logits: Tensor,
    trusty_logits: Tensor | None,
    targets: SegTargets,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    ignore_as_negative: bool = True,
    stride: int = 1,
    trusty_loss: str = "focal",
    pairs: float | None = None,
) -> dict[str, Tensor]:
    """Return the losses with their default weights; differentiable, memory is no object."""
    classes = class_logits.shape[1]
    labels = targets.labels.long()[:, stride // 2 :: stride, stride // 2 :: stride]
    valid = targets.valid[:, stride // 2 :: stride, stride // 2 :: stride]
    labelled = labels != targets.ignore
    onehot = F.one_hot(torch.where(labelled, labels, classes), classes + 1)[..., :classes]
    onehot = onehot.permute(0, 3, 1, 2).double()
    counted = torch.ones_like(labelled) if ignore_as_negative else labelled & valid
    counted = counted.double()[:, None]
    pixels = counted.sum(dim=(2, 3)).clamp(min=1)
    by_class = counted
    if targets.open_classes is not None:
        is_open = targets.open_classes.view(1, -1, 1, 1)
        by_class = counted * (labelled[:, None] | ~is_open)
    onehot = onehot * counted

    def upsample(logits: Tensor) -> Tensor:
        full = F.interpolate(
            logits.double(), size=targets.labels.shape[-2:], mode="bilinear", align_corners=False
        )
        return full[:, :, stride // 2 :: stride, stride // 2 :: stride]

    def focal(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        p = torch.sigmoid(logits)
        wrong = p * (1 - target) + (1 - p) * target
        weight = alpha * target + (1 - alpha) * (1 - target)
        return ((weight * wrong**gamma * cross_entropy * counted).sum(dim=(2, 3)) / pixels).sum()

    full = upsample(class_logits)
    p = torch.sigmoid(full) * by_class
    counts = onehot.sum(dim=(2, 3))
    intersection = (p * onehot).sum(dim=(2, 3))
    dice = 1 - (2 * intersection + 1) / (p.sum(dim=(2, 3)) + counts + 1)
    number = max(1.0, float((counts > 0).sum()) if pairs is None else pairs)
    losses = {
        "loss_mask": 20 * focal(full, onehot, by_class) / number,
        "loss_dice": dice[counts > 0].sum() / number,
    }
    if trusty_logits is not None:
        target = targets.trusty[:, None, stride // 2 :: stride, stride // 2 :: stride]
        trusty_full = upsample(trusty_logits)
        trusty = focal(trusty_full, target.double(), counted)
        if trusty_loss == "dice":
            p, target = torch.sigmoid(trusty_full) * counted, target * counted
            sums = [x.sum(dim=(1, 2, 3)) for x in (p * target, p, target)]
            trusty = (1 - (2 * sums[0] + 1) / (sums[1] + sums[2] + 1)).sum()
        losses["loss_trusty"] = 10 * trusty / number
    return losses
