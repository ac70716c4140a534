"""CLIP's vision transformer with deep prompts: importing registers it in detectron2."""

from tagclip.modeling.backbone.clip_vit import CLIPViT
from tagclip.modeling.backbone.prompts import DeepPrompts

__all__ = ["CLIPViT", "DeepPrompts"]
