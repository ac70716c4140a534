"""TagCLIP's training losses."""

from tagclip.modeling.losses.seg_loss import SegLoss, SegTargets, pixel_accuracy

__all__ = ["SegLoss", "SegTargets", "pixel_accuracy"]
