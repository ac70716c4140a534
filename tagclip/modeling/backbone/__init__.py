"""CLIP's image towers with deep prompts: importing registers them in detectron2."""

from tagclip.modeling.backbone.build import build_clip_backbone
from tagclip.modeling.backbone.clip_timm import CLIPTimm
from tagclip.modeling.backbone.clip_vit import CLIPViT
from tagclip.modeling.backbone.prompts import DeepPrompts

__all__ = ["CLIPTimm", "CLIPViT", "DeepPrompts", "build_clip_backbone"]
