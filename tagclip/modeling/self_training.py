"""Pseudo-labels of unseen classes from the model's own prediction: the transductive stage.

Formulas: docs/method.md, section 6. No plane of all classes ever exists: classes are upsampled and
compared a few at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from tagclip.config.checks import check_value
from tagclip.modeling.batching import stack_novel_masks
from tagclip.modeling.inference.gate import Gate, trusty_probability
from tagclip.modeling.losses.seg_loss import SegTargets
from tagclip.modeling.scalars import log_scalars
from tagclip.structures.vocabulary import Vocabulary

__all__ = ["SelfTraining", "best_class", "pseudo_label_shares"]

# Full-resolution float32 planes per class that are alive at the peak of `best_class`.
_PLANES = 5
_ON_UNSEEN = "pseudo_labels_on_unseen_pixels"


@dataclass(frozen=True)
class SelfTraining:
    """The rule that writes pseudo-labels into the targets of a batch.

    Attributes:
        region: ``unlabeled``: a pixel that is ignored and no padding gets the best class of all
            if that is unseen and its score before the gate is at least ``threshold``, and what
            stays ignored is no negative of unseen classes; ``novel``: a pixel whose true class is
            unseen gets the best unseen class (ZegCLIP).
        threshold: least score of a pseudo-label, in [0, 1]; ``unlabeled`` only.
        gate: makes the scores that are compared; ``unlabeled`` only.
        trusty_target: what the trusty token is trained on, see `trusty_probability`.
        workspace_mib: memory for full-resolution planes; never changes the result.

    Raises:
        ConfigError: ``region`` is unknown, or ``threshold`` no number from 0 to 1.
    """

    region: str
    threshold: float
    gate: Gate
    trusty_target: str
    workspace_mib: float

    def __post_init__(self) -> None:
        check_value("MODEL.TAGCLIP.SELF_TRAINING.REGION", self.region)
        check_value("MODEL.TAGCLIP.SELF_TRAINING.THRESHOLD", self.threshold)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> SelfTraining | None:
        """Read ``MODEL.TAGCLIP.SELF_TRAINING``; None in the other settings."""
        if cfg.DATASETS.ZERO_SHOT.SETTING != "transductive":
            return None
        rule = cfg.MODEL.TAGCLIP.SELF_TRAINING
        return cls(
            region=rule.REGION,
            threshold=rule.THRESHOLD,
            gate=replace(Gate.from_config(cfg), mode="both" if rule.GATE else "none"),
            trusty_target=cfg.MODEL.TAGCLIP.TRUSTY.TARGET,
            workspace_mib=cfg.MODEL.TAGCLIP.LOSS.WORKSPACE_MIB,
        )

    def pseudo_label(
        self,
        class_logits: Tensor,
        trusty_logits: Tensor | None,
        targets: SegTargets,
        batched_inputs: Sequence[dict[str, Any]],
        vocabulary: Vocabulary,
    ) -> SegTargets:
        """Add pseudo-labels of unseen classes to a batch's targets, and log what they cover.

        Args:
            class_logits: (N, K, h, w) logits of all classes from the current forward pass.
            trusty_logits: (N, 1, h, w), or None without a trusty token.
            targets: labels of the H x W pixels that h x w stands for.
            batched_inputs: N training inputs; for region ``novel`` with ``novel_mask``, which the
                region ``unlabeled`` only compares its pseudo-labels with.
            vocabulary: K classes with their partition.

        Raises:
            DatasetError: an input has no ``novel_mask``, and the rule needs it.
        """
        novel, device = None, class_logits.device
        if self.region == "novel" or all("novel_mask" in item for item in batched_inputs):
            novel = stack_novel_masks(batched_inputs, targets.labels.shape[-2:], device)
        seen_mask = torch.from_numpy(vocabulary.seen_mask).to(device)
        result = self(class_logits, trusty_logits, seen_mask, targets, novel)
        shares = pseudo_label_shares(targets, result, vocabulary.names, novel)
        on_unseen = shares.pop(_ON_UNSEEN, None)
        pixels = float(targets.valid.sum())
        log_scalars(shares, pixels)
        if on_unseen is not None:
            log_scalars({_ON_UNSEEN: on_unseen}, shares["pseudo_labels"] * pixels)
        return result

    @torch.no_grad()
    def __call__(
        self,
        class_logits: Tensor,
        trusty_logits: Tensor | None,
        seen_mask: Tensor,
        targets: SegTargets,
        novel: Tensor | None = None,
    ) -> SegTargets:
        """Return targets with pseudo-labels; the target of the trusty token stays as it is.

        Args:
            class_logits: (N, K, h, w) logits of all classes from the current forward pass.
            trusty_logits: (N, 1, h, w), or None without a trusty token.
            seen_mask: (K,) bool.
            targets: labels of the H x W pixels that h x w stands for.
            novel: (N, H, W) bool, pixels of unseen classes; for region ``novel``.
        """
        labels = targets.labels.clone()
        # What stays ignored may well be an unseen class: it must not push unseen scores down.
        open_classes = None if self.region == "novel" else ~seen_mask
        size = labels.shape[-2:]
        unseen = (~seen_mask).nonzero().flatten()
        for image, logits in enumerate(class_logits):
            if self.region == "novel":
                best, _ = best_class(logits[unseen], size, _ungated, self.workspace_mib)
                best, chosen = unseen[best], novel[image]
            else:
                trusty = None
                if trusty_logits is not None:
                    logits_of_trusty = _upsample(trusty_logits[image], size)
                    trusty = trusty_probability(logits_of_trusty, self.trusty_target)
                rank = partial(_gated, self.gate, trusty, seen_mask)
                best, score = best_class(logits, size, rank, self.workspace_mib)
                chosen = (labels[image] == targets.ignore) & targets.valid[image]
                chosen &= ~seen_mask[best] & (score >= self.threshold)
            labels[image] = torch.where(chosen, best.to(labels.dtype), labels[image])
        return replace(targets, labels=labels, open_classes=open_classes)


def _ungated(scores: Tensor, classes: slice) -> Tensor:
    return scores


def _gated(
    gate: Callable[[Tensor, Tensor | None, Tensor], Tensor],
    trusty: Tensor | None,
    seen_mask: Tensor,
    scores: Tensor,
    classes: slice,
) -> Tensor:
    return gate(scores, trusty, seen_mask[classes])


@torch.no_grad()
def best_class(
    class_logits: Tensor,
    size: Sequence[int],
    rank: Callable[[Tensor, slice], Tensor],
    workspace_mib: float,
) -> tuple[Tensor, Tensor]:
    """Find the class of every pixel that ranks first; ties go to the class that comes first.

    Args:
        class_logits: (K, h, w).
        size: (H, W) in pixels that h x w stands for.
        rank: (scores (C, H, W), their places among the K) -> (C, H, W) numbers to compare.
        workspace_mib: memory for planes of a chunk of classes.

    Returns:
        (H, W) int64 index of the class and (H, W) its score, the sigmoid of its logit.
    """
    height, width = size
    step = max(1, int(workspace_mib * 2**20 / (4 * height * width * _PLANES)))
    top = torch.full((height, width), -torch.inf, device=class_logits.device)
    best = torch.zeros(height, width, dtype=torch.long, device=top.device)
    score = torch.zeros_like(top)
    for start in range(0, len(class_logits), step):
        classes = slice(start, min(start + step, len(class_logits)))
        scores = _upsample(class_logits[classes], size).sigmoid_()
        value, index = rank(scores, classes).max(dim=0, keepdim=True)
        better = value[0] > top
        top = torch.where(better, value[0], top)
        best = torch.where(better, index[0] + start, best)
        score = torch.where(better, scores.gather(0, index)[0], score)
    return best, score


def pseudo_label_shares(
    before: SegTargets, after: SegTargets, names: Sequence[str], novel: Tensor | None = None
) -> dict[str, float]:
    """Say how much of the images the pseudo-labels cover.

    Args:
        before: targets as the data has them.
        after: the same with pseudo-labels.
        names: K class names.
        novel: (N, H, W) bool, pixels of unseen classes, if the data say where they are.

    Returns:
        ``pseudo_labels`` and, for the classes that got any, ``pseudo_labels/<name>``: percent of
        the pixels that are no padding. With ``novel`` and any pseudo-label,
        ``pseudo_labels_on_unseen_pixels``: percent of the pixels that got one.
    """
    chosen = after.labels != before.labels
    counts = torch.bincount(after.labels[chosen].long(), minlength=len(names)).tolist()
    percent = 100 / max(1, int(before.valid.sum()))
    shares = {"pseudo_labels": sum(counts) * percent}
    pairs = zip(names, counts, strict=True)
    shares |= {f"pseudo_labels/{name}": count * percent for name, count in pairs if count}
    if novel is not None and sum(counts):
        shares[_ON_UNSEEN] = 100 * float(novel[chosen].float().mean())
    return shares


def _upsample(planes: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, align_corners False: (C, h, w) -> (C, H, W)."""
    return F.interpolate(planes[None], tuple(size), mode="bilinear", align_corners=False)[0]
