"""The released sequence of operations around the same networks (docs/method.md, sections 4, 5).

Full-resolution planes of all classes, windows padded to the whole image, dense one-hot targets:
what the lean paths are measured against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from fvcore.nn import sigmoid_focal_loss
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F

from tagclip.modeling.inference.gate import trusty_probability
from tagclip.modeling.inference.windows import WindowGrid
from tagclip.modeling.losses.seg_loss import SegLoss, SegTargets
from tagclip.modeling.meta_arch import TagCLIP

__all__ = ["released_confusion", "released_fusion", "released_labels", "released_losses"]


@torch.no_grad()
def released_labels(model: TagCLIP, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Segment an image as mmseg's slide inference does.

    Args:
        model: in evaluation mode, gate "both", bias before the gate, with a trusty token.
        image: (3, h, w) uint8.
        size: (H, W) of the result; h and w are not less than the window, a multiple of patches.

    Returns:
        (H, W) int64.
    """
    image = (image.to(model.device).float() - model.pixel_mean) / model.pixel_std
    grid = model.inference_settings.grid(*image.shape[-2:])
    text = model.text_bank(model.vocabulary)
    logits = (
        torch.cat(model.sem_seg_head(model.backbone(image[None, :, rows, columns]), text)[0], dim=1)
        for rows, columns in grid
    )
    seen = torch.from_numpy(model.vocabulary.seen_mask)
    trusty_map = partial(trusty_probability, target=model.trusty_target)
    window = grid.window_height, grid.window_width
    return released_fusion(logits, grid, window, seen, trusty_map, size)


def released_fusion(
    logits: Iterable[Tensor],
    grid: WindowGrid,
    padded_size: tuple[int, int],
    seen: Tensor,
    trusty_map: Callable[[Tensor], Tensor],
    size: tuple[int, int],
    bias: float = 0.1,
) -> Tensor:
    """Gate planes of all classes, pad each window to the whole image, average, resize.

    Args:
        logits: (1, K + 1, h, w) of each window, the trusty token's last.
        grid: the windows.
        padded_size: (height, width) of a window in pixels, whole patches.
        seen: (K,) bool.
        trusty_map: logits to P(pixel belongs to a seen class).
        size: (H, W) of the result.
        bias: that is taken from seen classes.

    Returns:
        (H, W) int64 labels.
    """
    total = count = 0
    for window, (rows, columns) in zip(logits, grid, strict=True):
        planes = F.interpolate(window, padded_size, mode="bilinear", align_corners=False)
        planes = planes[..., : grid.window_height, : grid.window_width]
        scores, weight = planes[:, :-1].sigmoid(), trusty_map(planes[:, -1:])
        known, other = seen.nonzero()[:, 0], (~seen).nonzero()[:, 0]
        scores[:, known] = scores[:, known] - bias
        scores[:, known] = scores[:, known] * weight
        scores[:, other] = scores[:, other] * (1 - weight)
        around = (
            columns.start, grid.width - columns.stop, rows.start, grid.height - rows.stop
        )  # fmt: skip
        total = total + F.pad(scores, around)
        count = count + F.pad(scores.new_ones(1, 1, *scores.shape[-2:]), around)
    resized = F.interpolate(total / count, size, mode="bilinear", align_corners=False)
    return resized.softmax(dim=1).argmax(dim=1)[0]


def released_losses(
    loss: SegLoss, class_logits: Tensor, trusty_logits: Tensor, targets: SegTargets
) -> dict[str, Tensor]:
    """Compute what `SegLoss` does with its default rules, from dense targets by autograd.

    Args:
        loss: holds the weights.
        class_logits: (N, K, h, w).
        trusty_logits: (N, 1, h, w).
        targets: labels of H x W pixels.
    """
    size, classes = targets.labels.shape[-2:], class_logits.shape[1]
    planes = torch.cat([class_logits, trusty_logits], dim=1)
    planes = F.interpolate(planes, size, mode="bilinear", align_corners=False)
    logits, trusty = planes[:, :-1], planes[:, -1:]
    labels = targets.labels.long().cpu()
    onehot = torch.zeros(len(labels), classes, *size)
    for image, label in enumerate(labels):
        for k in label.unique().tolist():
            if k != targets.ignore:
                onehot[image, k] = label == k
    onehot = onehot.to(logits.device)
    present = onehot.flatten(2).sum(dim=2) > 0
    pairs = max(1, int(present.sum()))
    focal = partial(sigmoid_focal_loss, alpha=loss.focal.alpha, gamma=loss.focal.gamma)
    mask = focal(logits, onehot).flatten(2).mean(dim=2).sum()
    p, t = logits.sigmoid()[present].flatten(1), onehot[present].flatten(1)
    dice = 1 - (2 * (p * t).sum(dim=1) + 1) / (p.sum(dim=1) + t.sum(dim=1) + 1)
    token = focal(trusty, targets.trusty[:, None].float()).flatten(2).mean(dim=2).sum()
    return {
        "loss_mask": loss.mask_weight * mask / pairs,
        "loss_dice": loss.dice_weight * dice.sum() / pairs,
        "loss_trusty": loss.trusty_weight * token / pairs,
    }


def released_confusion(scores: Tensor, truth: np.ndarray) -> dict[str, Any]:
    """Evaluate an image as detectron2's `SemSegEvaluator` does: argmax, matrix, RLE per class.

    Args:
        scores: (K, H, W) float on the CPU.
        truth: (H, W) uint8 labels; K and above are ignored.
    """
    classes = len(scores)
    labels = scores.argmax(dim=0).numpy()
    index = (classes + 1) * labels.reshape(-1) + np.minimum(truth, classes).reshape(-1)
    matrix = np.bincount(index, minlength=(classes + 1) ** 2)
    masks = [
        coco_mask.encode(np.asfortranarray(labels == k, dtype=np.uint8)) for k in np.unique(labels)
    ]
    return {"matrix": matrix.reshape(classes + 1, classes + 1), "masks": masks}
