"""open_clip without what it needs only for image towers of its other models and for uploads.

timm takes as long to import as the rest of open_clip, and loads torch's compiler.
"""

from tagclip.utils.deferred import deferred

with (
    deferred("open_clip.timm_model", "TimmModel"),
    deferred("open_clip.push_to_hf_hub", "push_pretrained_to_hf_hub", "push_to_hf_hub"),
):
    import open_clip

__all__ = ["open_clip"]
