"""Segmentation by CLIP itself, nothing of it trained. Importing it registers its parts."""

from tagclip.projects.training_free.backbone import CLIPViTValues
from tagclip.projects.training_free.head import MaskCLIPHead, TrainingFreeHead

__all__ = ["CLIPViTValues", "MaskCLIPHead", "TrainingFreeHead"]
