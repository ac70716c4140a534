"""CLIP's vision transformer with what the last block's attention would have mixed."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from tagclip.errors import ConfigError
from tagclip.modeling.backbone import CLIPViT

__all__ = ["CLIPViTValues"]


@BACKBONE_REGISTRY.register()
class CLIPViTValues(CLIPViT):
    """CLIP whose last block attends to nothing (MaskCLIP, arXiv 2112.01071, section 3.2).

    Each patch keeps its own value vector: for x = LN1(token) of the last block,
    v = LN_post(W_out (W_v x + b_v) + b_out) P, without residual and MLP.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        if cfg.MODEL.CLIP.PROMPT.NUM_TOKENS:
            raise ConfigError(
                f"MODEL.CLIP.PROMPT.NUM_TOKENS: found {cfg.MODEL.CLIP.PROMPT.NUM_TOKENS} with "
                "MODEL.BACKBONE.NAME CLIPViTValues, expected 0: it is CLIP as it is"
            )
        return super().from_config(cfg, input_shape)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of both maps."""
        width = self.proj.shape[0]
        return {
            "clip_dense": ShapeSpec(channels=self.embed_dim, stride=self.patch_size),
            "clip_keys": ShapeSpec(channels=width, stride=self.patch_size),
        }

    def forward(self, images: Tensor, positions: Tensor | None = None) -> dict[str, Tensor]:
        """Encode normalised images.

        Args:
            images: (N, 3, H, W) float, H and W multiples of the patch size.
            positions: see `CLIPViT.forward`.

        Returns:
            ``clip_dense`` (N, D, h, w) float32, projected values, unit length over D, and
            ``clip_keys`` (N, W, h, w), keys of the last block, all heads one after the other.
        """
        tokens, grid = self.embed(images, positions)
        tokens = self.ln_pre(tokens)
        *blocks, last = self.active_blocks()
        for block in blocks:
            tokens = block(tokens)
        qkv, width = last.attn.qkv, self.proj.shape[0]
        # The class token and all queries are left out: nothing here depends on them.
        patches = last.ln_1(tokens[:, 1:]).to(qkv.weight.dtype)
        both = F.linear(patches, qkv.weight[width:], qkv.bias[width:])
        keys, values = both.split(width, dim=2)
        values = self.project(last.attn.proj(values).float())
        keys = keys.float()
        maps = {"clip_dense": values, "clip_keys": keys}
        return {name: map_.transpose(1, 2).unflatten(2, grid) for name, map_ in maps.items()}
