"""The model: importing this package registers its parts in detectron2."""

from tagclip.modeling.backbone import CLIPViT
from tagclip.modeling.clip.text_bank import TextBank
from tagclip.modeling.heads import TagCLIPHead
from tagclip.modeling.meta_arch import TagCLIP

__all__ = ["CLIPViT", "TagCLIP", "TagCLIPHead", "TextBank"]
