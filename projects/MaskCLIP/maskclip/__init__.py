"""MaskCLIP: segmentation by CLIP itself, nothing trained. Importing it registers both parts."""

from tagclip.projects.maskclip.backbone import CLIPViTValues
from tagclip.projects.maskclip.head import MaskCLIPHead

__all__ = ["CLIPViTValues", "MaskCLIPHead"]
