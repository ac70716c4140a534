"""The head of CLIP as it is: patches against class vectors, nothing in it to train."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.clip import CLIPSource
from tagclip.modeling.heads.conv_trusty import ConvTrustyHead
from tagclip.modeling.losses.seg_loss import SegTargets

__all__ = ["MaskCLIPHead", "TrainingFreeHead", "log_odds", "smooth_by_keys"]

_FEATURES = (["clip_dense"], ["clip_dense", "clip_keys"])
# Highest log-probability: what follows the sigmoid stays finite, 1 - 1e-6.
_HIGHEST = -1e-6


@SEM_SEG_HEADS_REGISTRY.register()
class TrainingFreeHead(nn.Module):
    """Class probabilities of every patch (MaskCLIP, arXiv 2112.01071, section 3).

    Offers what `TagCLIP` asks of a head. A score is CLIP's own probability of a class among those
    that are asked: softmax over the classes of scale * cosine, with CLIP's learned scale. Scores
    lie in [0, 1] and a seen bias is a difference of probabilities.

    Training changes none of this; it can only add a map that tells seen from unseen pixels.
    """

    @configurable
    def __init__(
        self,
        *,
        scale: Tensor | float,
        key_smoothing: bool = False,
        trusty_head: ConvTrustyHead | None = None,
        label_stride: int = 1,
    ) -> None:
        """Build.

        Args:
            scale: CLIP's logit scale, exp(``logit_scale``), a scalar.
            key_smoothing: average the probabilities over patches of similar keys.
            trusty_head: patch vectors (N, D, h, w) -> trusty logits; None: nothing is trained.
            label_stride: the trusty head learns from every so many labels in both directions.
        """
        super().__init__()
        self.key_smoothing = key_smoothing
        self.trusty_head, self.label_stride = trusty_head, label_stride
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        names = list(cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES)
        if names not in _FEATURES or not input_shape.keys() >= set(names):
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES: found {names}, expected [clip_dense], or "
                "[clip_dense, clip_keys] for key smoothing, of any MODEL.CLIP.LAST_BLOCK but clip"
            )
        trusty = cfg.MODEL.TAGCLIP.TRUSTY
        if trusty.ENABLED and trusty.KIND != "conv":
            raise ConfigError(
                f"MODEL.TAGCLIP.TRUSTY.KIND: found {trusty.KIND!r} with MODEL.SEM_SEG_HEAD.NAME "
                "TrainingFreeHead, expected conv, or ENABLED False: it has no queries for a token"
            )
        setting = cfg.DATASETS.ZERO_SHOT.SETTING
        if trusty.ENABLED and setting != "inductive":
            raise ConfigError(
                f"DATASETS.ZERO_SHOT.SETTING: found {setting!r} with MODEL.SEM_SEG_HEAD.NAME "
                "TrainingFreeHead and a trusty head, expected inductive: that head learns from "
                "labels of seen classes alone"
            )
        return {
            "scale": _logit_scale(cfg),
            "key_smoothing": "clip_keys" in names,
            "trusty_head": ConvTrustyHead.from_config(cfg, input_shape["clip_dense"].channels),
            "label_stride": cfg.MODEL.TAGCLIP.LOSS.STRIDE,
        }

    def forward(
        self,
        features: dict[str, Tensor],
        class_embed: Tensor,
        targets: SegTargets | None = None,
    ) -> tuple[tuple[Tensor, Tensor | None] | None, dict[str, Tensor]]:
        """Compute logits, or with targets keep what the trusty head learns from.

        Args:
            features: ``clip_dense`` (N, D, h, w), unit over D, and for key smoothing ``clip_keys``
                (N, W, h, w).
            class_embed: (K, D) unit class vectors.
            targets: labels at full resolution, see `SegTargets`.

        Returns:
            (None, {}) with targets, else ((class logits (N, K, h, w), trusty logits (N, 1, h, w) or
            None), {}), see `layers`.

        Raises:
            ConfigError: there are targets and nothing to train.
        """
        if targets is not None:
            return None, self.losses(features, None, None, targets)
        return self.layers(features, class_embed), {}

    def layers(
        self, features: dict[str, Tensor], class_embed: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return (N, K, h, w) float32 logits, whose sigmoid is the class probability.

        With MODEL.CLIP.SYNONYMS max each prompt name is a class of its own here. Beside them the
        trusty logits (N, 1, h, w), or None without a trusty head.
        """
        dense = features["clip_dense"].float()
        trusty = None
        if self.trusty_head is not None:
            with torch.no_grad():
                trusty = self.trusty_head(dense)
        cosine = torch.einsum("kd,ndhw->nkhw", class_embed.to(dense), dense)
        if not self.key_smoothing:
            return log_odds((self.scale * cosine).log_softmax(1)), trusty
        probability = (self.scale * cosine).softmax(1)
        return log_odds(smooth_by_keys(probability, features["clip_keys"]).log()), trusty

    def losses(
        self,
        features: dict[str, Tensor],
        class_logits: Tensor | None,
        trusty_logits: Tensor | None,
        targets: SegTargets,
    ) -> dict[str, Tensor]:
        """Return no loss: the trusty head keeps the batch, for steps with a loss of its own.

        Raises:
            ConfigError: there is no trusty head, so nothing to train.
        """
        if self.trusty_head is None:
            raise ConfigError(
                "MODEL.SEM_SEG_HEAD.NAME: found TrainingFreeHead in training, which has nothing to "
                "train; evaluate it with --eval-only"
            )
        self.trusty_head.remember(features["clip_dense"], targets, self.label_stride)
        return {}


@SEM_SEG_HEADS_REGISTRY.register()
class MaskCLIPHead(TrainingFreeHead):
    """Its name in old configs and checkpoints."""


def log_odds(log_probability: Tensor) -> Tensor:
    """Return log p - log(1 - p) of any shape; finite at p = 1, where it stands for 1 - 1e-6."""
    log_probability = log_probability.clamp(max=_HIGHEST)
    return log_probability - torch.log(-torch.expm1(log_probability))


def smooth_by_keys(probability: Tensor, keys: Tensor) -> Tensor:
    """Average predictions over patches, weighted by the similarity of their keys.

    p_i <- sum_j w_ij p_j / sum_j w_ij with w_ij = max(0, cos(k_i, k_j)): the key smoothing of
    MaskCLIP, section 3.2. There the sum is not divided, which changes no argmax; negative
    similarities count as 0 here, so that a probability stays one.

    Args:
        probability: (N, K, h, w).
        keys: (N, W, h, w).

    Returns:
        (N, K, h, w).
    """
    unit = F.normalize(keys.flatten(2).float(), dim=1)
    weights = (unit.mT @ unit).clamp_(min=0)
    weights /= weights.sum(2, keepdim=True)
    return (probability.flatten(2) @ weights.mT).view_as(probability)


def _logit_scale(cfg: CfgNode) -> Tensor:
    source = CLIPSource.from_config(cfg)
    state = source.state_dict()
    if "logit_scale" not in state:
        raise CheckpointError(
            f"{source.path}: found no logit_scale in CLIP's weights, which turns similarities "
            "into probabilities; expected a complete CLIP"
        )
    return state["logit_scale"].exp()
