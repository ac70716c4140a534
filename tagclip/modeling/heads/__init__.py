"""Heads on CLIP's features: importing registers them in detectron2."""

from tagclip.modeling.heads.mask_decoder import MaskDecoder
from tagclip.modeling.heads.tagclip_head import RelationDescriptor, TagCLIPHead

__all__ = ["MaskDecoder", "RelationDescriptor", "TagCLIPHead"]
