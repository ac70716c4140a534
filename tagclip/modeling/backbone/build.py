"""The backbone that a CLIP's image tower needs."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

from tagclip.modeling.backbone.clip_timm import CLIPTimm
from tagclip.modeling.backbone.clip_vit import CLIPViT
from tagclip.modeling.clip.source import CLIPSource

__all__ = ["build_clip_backbone"]


@BACKBONE_REGISTRY.register()
def build_clip_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build `CLIPViT` for open_clip's own ViTs, `CLIPTimm` for towers that it builds on timm.

    Args:
        cfg: ``MODEL.CLIP`` says which.
        input_shape: not used; detectron2 passes it.
    """
    backbone = CLIPTimm if CLIPSource.from_config(cfg).is_timm else CLIPViT
    return backbone(cfg, input_shape)
