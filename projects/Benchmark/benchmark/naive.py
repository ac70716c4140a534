"""The released sequence of operations around the same networks (docs/method.md, sections 4, 5).

Full-resolution planes of all classes, windows padded to the whole image, dense one-hot targets:
what the lean paths are measured against.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tagclip.modeling.inference.gate import trusty_probability
from tagclip.modeling.losses.seg_loss import SegLoss, SegTargets
from tagclip.modeling.meta_arch import TagCLIP

__all__ = ["naive_confusion", "naive_labels", "naive_losses"]


@torch.no_grad()
def naive_labels(model: TagCLIP, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Segment an image as mmseg's slide inference does.

    Args:
        model: in evaluation mode, gate "both", bias before the gate, with a trusty token.
        image: (3, h, w) uint8.
        size: (H, W) of the result; h and w are not less than the window, a multiple of patches.

    Returns:
        (H, W) int64.
    """
    image = (image.to(model.device).float() - model.pixel_mean) / model.pixel_std
    height, width = image.shape[-2:]
    total = count = 0
    for rows, columns in model.inference_settings.grid(height, width):
        scores = _window_scores(model, image[:, rows, columns])
        around = (columns.start, width - columns.stop, rows.start, height - rows.stop)
        total = total + F.pad(scores, around)
        count = count + F.pad(scores.new_ones(1, 1, *scores.shape[-2:]), around)
    resized = F.interpolate(total / count, size, mode="bilinear", align_corners=False)
    return resized.softmax(dim=1).argmax(dim=1)[0]


def _window_scores(model: TagCLIP, window: Tensor, bias: float = 0.1) -> Tensor:
    """(3, h, w) -> (1, K, h, w) gated scores."""
    vocabulary = model.vocabulary
    (logits, trusty), _ = model.sem_seg_head(
        model.backbone(window[None]), model.text_bank(vocabulary)
    )
    planes = torch.cat([logits, trusty], dim=1)
    planes = F.interpolate(planes, window.shape[-2:], mode="bilinear", align_corners=False)
    scores = planes[:, :-1].sigmoid()
    weight = trusty_probability(planes[:, -1:], model.trusty_target)
    seen = torch.from_numpy(vocabulary.seen_mask.nonzero()[0]).to(scores.device)
    unseen = torch.from_numpy((~vocabulary.seen_mask).nonzero()[0]).to(scores.device)
    scores[:, seen] = scores[:, seen] - bias
    scores[:, seen] = scores[:, seen] * weight
    scores[:, unseen] = scores[:, unseen] * (1 - weight)
    return scores


def naive_losses(
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
    focal = _focal(logits, onehot, loss).flatten(2).mean(dim=2).sum()
    p, t = logits.sigmoid()[present].flatten(1), onehot[present].flatten(1)
    dice = 1 - (2 * (p * t).sum(dim=1) + 1) / (p.sum(dim=1) + t.sum(dim=1) + 1)
    token = _focal(trusty, targets.trusty[:, None].float(), loss).flatten(2).mean(dim=2).sum()
    return {
        "loss_mask": loss.mask_weight * focal / pairs,
        "loss_dice": loss.dice_weight * dice.sum() / pairs,
        "loss_trusty": loss.trusty_weight * token / pairs,
    }


def _focal(logits: Tensor, target: Tensor, loss: SegLoss) -> Tensor:
    p = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    truth = p * target + (1 - p) * (1 - target)
    alpha = loss.focal.alpha * target + (1 - loss.focal.alpha) * (1 - target)
    return alpha * entropy * (1 - truth) ** loss.focal.gamma


def naive_confusion(scores: Tensor, truth: np.ndarray) -> dict[str, Any]:
    """Evaluate an image as detectron2's `SemSegEvaluator` does: argmax, matrix, RLE per class.

    Args:
        scores: (K, H, W) float on the CPU.
        truth: (H, W) uint8 labels; K and above are ignored.
    """
    from pycocotools import mask as coco_mask

    classes = len(scores)
    labels = scores.argmax(dim=0).numpy()
    index = (classes + 1) * labels.reshape(-1) + np.minimum(truth, classes).reshape(-1)
    matrix = np.bincount(index, minlength=(classes + 1) ** 2)
    masks = [
        coco_mask.encode(np.asfortranarray(labels == k, dtype=np.uint8)) for k in np.unique(labels)
    ]
    return {"matrix": matrix.reshape(classes + 1, classes + 1), "masks": masks}
