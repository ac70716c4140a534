"""Models that are handed on: a folder with card, config, class list and trained tensors."""

from tagclip.pretrained.content import pretrained_content
from tagclip.pretrained.saving import check_target, push_to_hub, save_folder

__all__ = ["check_target", "pretrained_content", "push_to_hub", "save_folder"]
