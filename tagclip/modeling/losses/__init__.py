"""TagCLIP's training losses."""

from tagclip.modeling.losses.seg_loss import Losses, SegLoss, SegTargets, pixel_accuracy

__all__ = ["Losses", "SegLoss", "SegTargets", "pixel_accuracy"]
