"""CLIP's vision transformer with deep prompts, and where its weights come from."""

from tagclip.modeling.backbone.clip_source import CLIPSource
from tagclip.modeling.backbone.clip_vit import CLIPViT
from tagclip.modeling.backbone.clip_weights import CLIPWeights, read_clip_weights
from tagclip.modeling.backbone.prompts import DeepPrompts

__all__ = ["CLIPSource", "CLIPViT", "CLIPWeights", "DeepPrompts", "read_clip_weights"]
