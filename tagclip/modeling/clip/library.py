"""open_clip without what it needs only for towers of its other models and for uploads.

timm and transformers take as long to import as the rest of open_clip each, and timm loads torch's
compiler.
"""

from tagclip.utils.deferred import deferred

with (
    deferred("open_clip.timm_model", "TimmModel"),
    deferred("open_clip.coca_model", "CoCa"),
    deferred("open_clip.hf_model", "HFTextEncoder"),
    deferred("open_clip.push_to_hf_hub", "push_pretrained_to_hf_hub", "push_to_hf_hub"),
):
    import open_clip

__all__ = ["open_clip"]
