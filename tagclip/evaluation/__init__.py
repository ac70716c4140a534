"""Evaluation of zero-shot segmentation."""

from tagclip.evaluation.evaluator import ZeroShotSemSegEvaluator
from tagclip.evaluation.metrics import auroc, confusion_matrix, harmonic_mean, per_class, summarize

__all__ = [
    "ZeroShotSemSegEvaluator",
    "auroc",
    "confusion_matrix",
    "harmonic_mean",
    "per_class",
    "summarize",
]
