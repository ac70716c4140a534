"""The backbone's name of old configs and checkpoints."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

from tagclip.modeling.backbone import CLIPViT

__all__ = ["CLIPViTValues"]


@BACKBONE_REGISTRY.register()
class CLIPViTValues(CLIPViT):
    """`CLIPViT` whose ``MODEL.CLIP.LAST_BLOCK`` is maskclip where the config says nothing."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        parts = super().from_config(cfg, input_shape)
        if parts["last_block"] == "clip":
            parts["last_block"] = "maskclip"
        return parts
