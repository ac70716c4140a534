"""open_clip without timm, which it needs only for image towers of its other models.

timm takes as long to import as all of open_clip, and loads torch's compiler.
"""

from tagclip.utils.deferred import deferred

with deferred("open_clip.timm_model", "TimmModel"):
    import open_clip
    import open_clip.model

__all__ = ["open_clip"]
