"""Evaluation of zero-shot segmentation."""

from tagclip.evaluation.detection import auroc, average_precision, false_positive_rate
from tagclip.evaluation.evaluator import ZeroShotSemSegEvaluator
from tagclip.evaluation.metrics import confusion_matrix, harmonic_mean, per_class, summarize

__all__ = [
    "ZeroShotSemSegEvaluator",
    "auroc",
    "average_precision",
    "confusion_matrix",
    "false_positive_rate",
    "harmonic_mean",
    "per_class",
    "summarize",
]
