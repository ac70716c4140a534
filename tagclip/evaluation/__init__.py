"""Evaluation of zero-shot segmentation."""

from tagclip.evaluation.metrics import auroc, confusion_matrix, harmonic_mean, per_class, summarize
from tagclip.evaluation.zero_shot_evaluator import ZeroShotSemSegEvaluator

__all__ = [
    "ZeroShotSemSegEvaluator",
    "auroc",
    "confusion_matrix",
    "harmonic_mean",
    "per_class",
    "summarize",
]
