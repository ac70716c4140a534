"""TagCLIP's head: class queries and the trusty token against the patches."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from tagclip.config.checks import check_value
from tagclip.modeling.heads.conv_trusty import ConvTrustyHead
from tagclip.modeling.heads.mask_decoder import MaskDecoder
from tagclip.modeling.heads.relative_trusty import RelativeTrusty
from tagclip.modeling.losses.seg_loss import SegLoss, SegTargets

__all__ = ["RelationDescriptor", "TagCLIPHead"]

logger = logging.getLogger(__name__)


class RelationDescriptor(nn.Module):
    """r_k = W [t_k * g ; t_k] + b (ZegCLIP, arXiv 2212.03588; docs/method.md, section 4)."""

    def __init__(self, *, dim: int, kind: str = "cls_text") -> None:
        """Create the projection, initialised Xavier-uniform with zero bias.

        Args:
            dim: channels D of class and image vectors.
            kind: ``cls_text``, the formula above, or ``none``, r_k = W t_k + b.

        Raises:
            ConfigError: the kind is unknown.
        """
        super().__init__()
        check_value("MODEL.TAGCLIP.RELATION", kind)
        self.kind = kind
        self.proj = nn.Linear(2 * dim if kind == "cls_text" else dim, dim)
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, class_embed: Tensor, clip_global: Tensor) -> Tensor:
        """Describe every class for every image.

        Args:
            class_embed: (K, D) class vectors.
            clip_global: (N, D) image vectors.

        Returns:
            (N, K, D) queries.
        """
        if self.kind == "none":
            return self.proj(class_embed).expand(clip_global.shape[0], -1, -1)
        weight_product, weight_text = self.proj.weight.chunk(2, dim=1)
        # W [t*g ; t] = W1 (t*g) + W2 t: the second term is the same for all images.
        text = nn.functional.linear(class_embed, weight_text, self.proj.bias)
        product = class_embed * clip_global[:, None]
        return nn.functional.linear(product, weight_product) + text


@SEM_SEG_HEADS_REGISTRY.register()
class TagCLIPHead(nn.Module):
    """Low-resolution class logits and trusty logits (TagCLIP paper, section 3.2).

    Knows neither names nor which classes are seen: one more learned query, the trusty token,
    is all that distinguishes it from a plain matching decoder. Instead of the token there may be
    a convolutional network, which leaves the decoder as it is without either.
    """

    @configurable
    def __init__(
        self,
        *,
        relation: RelationDescriptor,
        decoder: MaskDecoder,
        loss: SegLoss,
        dim: int,
        feature_scale: float = 1.0,
        trusty_enabled: bool = True,
        trusty_head: ConvTrustyHead | None = None,
        trusty_relative: RelativeTrusty | None = None,
    ) -> None:
        """Assemble built parts.

        Args:
            relation: (K, D) class vectors, (N, D) image vectors -> (N, K, D) queries.
            decoder: queries and (N, n, D) patch vectors -> (N, Q, n) logits.
            loss: logits and targets -> weighted losses.
            dim: channels D.
            feature_scale: multiplies class, image and patch vectors, not the trusty token.
            trusty_enabled: whether the trusty token exists.
            trusty_head: patch vectors (N, D, h, w) -> trusty logits, instead of the token.
            trusty_relative: compares asked classes, instead of either; `TagCLIP` asks it.
        """
        super().__init__()
        self.relation, self.decoder, self.loss = relation, decoder, loss
        self.feature_scale = feature_scale
        self.trusty_token = nn.Parameter(torch.empty(1, dim)) if trusty_enabled else None
        if trusty_enabled:
            nn.init.xavier_uniform_(self.trusty_token)
        self.trusty_head, self.trusty_relative = trusty_head, trusty_relative

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        tagclip = cfg.MODEL.TAGCLIP
        dim = input_shape["clip_dense"].channels
        trusty = tagclip.TRUSTY
        check_value("MODEL.TAGCLIP.TRUSTY.KIND", trusty.KIND)
        has_token = trusty.ENABLED and trusty.KIND == "token"
        if has_token and not tagclip.LOSS.IGNORE_AS_NEGATIVE:
            logger.warning(
                "MODEL.TAGCLIP.LOSS.IGNORE_AS_NEGATIVE False leaves the trusty token seen pixels "
                "only: its map will be 1 everywhere; disable MODEL.TAGCLIP.TRUSTY.ENABLED"
            )
        return {
            "relation": RelationDescriptor(dim=dim, kind=tagclip.RELATION),
            "decoder": MaskDecoder(
                dim=dim,
                num_heads=tagclip.NUM_HEADS,
                layers=tagclip.LAYERS,
                dropout=tagclip.DROPOUT,
            ),
            "loss": SegLoss(
                mask_weight=tagclip.LOSS.MASK,
                dice_weight=tagclip.LOSS.DICE,
                trusty_weight=tagclip.LOSS.TRUSTY,
                trusty_loss=trusty.LOSS,
                focal_alpha=tagclip.LOSS.FOCAL_ALPHA,
                focal_gamma=tagclip.LOSS.FOCAL_GAMMA,
                ignore_as_negative=tagclip.LOSS.IGNORE_AS_NEGATIVE,
                stride=tagclip.LOSS.STRIDE,
                workspace_mib=tagclip.LOSS.WORKSPACE_MIB,
                compiled=cfg.MODEL.COMPILE,
            ),
            "dim": dim,
            "feature_scale": tagclip.FEATURE_SCALE,
            "trusty_enabled": has_token,
            # Made last: the class path begins with the same numbers as without it.
            "trusty_head": ConvTrustyHead.from_config(cfg, dim),
            "trusty_relative": RelativeTrusty.from_config(
                cfg, dim, input_shape["clip_dense"].stride
            ),
        }

    def forward(
        self,
        features: dict[str, Tensor],
        class_embed: Tensor,
        targets: SegTargets | None = None,
    ) -> tuple[tuple[Tensor, Tensor | None] | None, dict[str, Tensor]]:
        """Compute losses if there are targets, logits otherwise.

        Args:
            features: ``clip_dense`` (N, D, h, w) and ``clip_global`` (N, D), unit over D.
            class_embed: (K, D) unit class vectors.
            targets: labels at full resolution, see `SegTargets`.

        Returns:
            (None, losses) or ((class logits (N, K, h, w), trusty logits (N, 1, h, w) or None), {}).
        """
        class_logits, trusty_logits = self.layers(features, class_embed)
        if targets is not None:
            return None, self.losses(features, class_logits, trusty_logits, targets)
        return (class_logits, trusty_logits), {}

    def layers(
        self, features: dict[str, Tensor], class_embed: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return class logits (N, K, h, w) and trusty logits (N, 1, h, w) or None."""
        dense = features["clip_dense"]
        queries = class_embed * self.feature_scale
        if self.trusty_token is not None:
            queries = torch.cat([queries, self.trusty_token])
        queries = self.relation(queries, features["clip_global"] * self.feature_scale)
        memory = dense.flatten(2).transpose(1, 2) * self.feature_scale
        logits = self.decoder(queries, memory).unflatten(2, dense.shape[-2:])
        if self.trusty_token is not None:
            return logits[:, :-1], logits[:, -1:]
        return logits, self._conv_logits(dense)

    def _conv_logits(self, dense: Tensor) -> Tensor | None:
        if self.trusty_head is None:
            return None
        # It learns from what it keeps in `losses`, never from the model's loss.
        with torch.no_grad():
            return self.trusty_head(dense.detach() * self.feature_scale)

    def losses(
        self,
        features: dict[str, Tensor],
        class_logits: Tensor,
        trusty_logits: Tensor | None,
        targets: SegTargets,
    ) -> dict[str, Tensor]:
        """Return the weighted losses of `SegLoss`.

        A convolutional trusty head has no part in them: it keeps the batch, for steps of its own.

        Args:
            features: of the training images, see `forward`.
            class_logits: (N, K, h, w), see `layers`.
            trusty_logits: (N, 1, h, w) or None, see `layers`.
            targets: with ``trusty``, 1 on the pixels of seen classes, where something learns it.
        """
        if self.trusty_head is not None:
            dense = features["clip_dense"] * self.feature_scale
            self.trusty_head.remember(dense, targets, self.loss.stride)
            trusty_logits = None
        return self.loss(class_logits, trusty_logits, targets)
