"""Analysis of one evaluation from its saved logits: curves, detectors, calibration, confusions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from tagclip.analysis.bias_curves import BiasCounts, BiasCurve, Contest, bias_grid
from tagclip.analysis.calibration import TrustyCounts, detector_figures
from tagclip.analysis.none_counts import NoneCounts
from tagclip.errors import ConfigError
from tagclip.evaluation.metrics import confusion_matrix, summarize
from tagclip.modeling.inference.fusion import ScoreFusion

__all__ = ["DETECTOR_SECTIONS", "GateAnalysis", "contest", "ungated"]

DETECTOR_SECTIONS = {
    "AUROC": "detector",
    "AUPR": "detector AUPR",
    "FPR95": "detector FPR at 95 % TPR",
}
"""Measure of `tagclip.evaluation.detection` -> section of the figures."""


def ungated(fusion: ScoreFusion) -> ScoreFusion:
    """The same logits without the trusty map in their scores."""
    return replace(fusion, gate=replace(fusion.gate, mode="none"))


def contest(fusion: ScoreFusion, size: tuple[int, int]) -> Contest:
    """Best seen and best unseen class of every pixel, whatever the bias of the gate.

    Args:
        fusion: logits of one image and their gate.
        size: (height, width) in pixels; N is their product.

    Raises:
        ConfigError: all classes are on one side.
    """
    gate, seen = fusion.gate, fusion.seen_mask
    if not 0 < int(seen.sum()) < len(seen):
        raise ConfigError(
            f"found {int(seen.sum())} seen of {len(seen)} classes, expected seen and unseen ones; "
            "analyze a run whose split has both"
        )
    unbiased = replace(fusion, gate=replace(gate, bias=0.0))
    labels, scores = [], []
    for flag in (True, False):
        classes = (seen == flag).nonzero()[:, 0]
        best, score = _select(unbiased, classes).best(size)
        labels.append(_flat(classes[best.long()]))
        scores.append(_flat(score.double()))
    # How much a seen class loses at every pixel for a bias of 1.
    trusty = fusion.trusty(size) if gate.weighs_bias else None
    weight = np.ones(len(scores[0])) if trusty is None else _flat(trusty.double())
    return Contest(*labels, scores[0] - scores[1], weight)


def _select(fusion: ScoreFusion, classes: torch.Tensor) -> ScoreFusion:
    views = (replace(view, class_logits=view.class_logits[:, classes]) for view in fusion.views)
    return replace(fusion, views=tuple(views), seen_mask=fusion.seen_mask[classes])


def _flat(values: torch.Tensor) -> np.ndarray:
    return values.reshape(-1).cpu().numpy()


@dataclass
class GateAnalysis:
    """Adds up images; memory depends on the number of classes alone.

    Attributes:
        seen: (K,) bool, which classes are seen to the model.
        bias: the configured seen bias.
        has_gate: whether the trusty map takes part in the scores.
    """

    seen: np.ndarray
    bias: float
    has_gate: bool

    def __post_init__(self) -> None:
        grid, classes = bias_grid([self.bias]), len(self.seen)
        self.own = BiasCounts(self.seen, grid)
        # Without a gate the two are one.
        self.none = BiasCounts(self.seen, grid) if self.has_gate else self.own
        self.trusty = TrustyCounts(self.seen)
        self.rejected: NoneCounts | None = None
        self.confusion, self.oracle = np.zeros((2, classes, classes), dtype=np.int64)

    def add(self, truth: np.ndarray, fusion: ScoreFusion, size: tuple[int, int]) -> np.ndarray:
        """Count one image.

        Args:
            truth: (H, W) integers; those outside [0, K) have no label.
            fusion: its logits and their gate.
            size: (H, W).

        Returns:
            (K, K) confusion of this image with the model's gate and bias, rows are true classes.

        Raises:
            ConfigError: the size is not that of the labels, or see `contest`.
        """
        if truth.shape != tuple(size):
            raise ConfigError(
                f"found labels of {truth.shape}, logits of an image of {tuple(size)}; the label "
                "files have changed: evaluate the run again"
            )
        flat = truth.reshape(-1)
        classes = len(self.seen)
        found = contest(fusion, size)
        bare = contest(ungated(fusion), size) if self.has_gate else found
        self.own.add(flat, found)
        if self.has_gate:
            self.none.add(flat, bare)
        margin = fusion.margin(size)
        if margin is not None:
            self.rejected = self.rejected or NoneCounts(self.seen)
            self.rejected.add(flat, found.labels(self.bias), _flat(margin < 0))
        pixels = np.flatnonzero((flat >= 0) & (flat < classes))
        flat, own, plain = flat[pixels], found[pixels], bare[pixels]
        perfect = np.where(self.seen[flat], plain.seen, plain.unseen)
        self.oracle += confusion_matrix(flat, perfect, classes)
        trusty = fusion.trusty(size)
        if trusty is not None:
            self.trusty.add(flat, _flat(trusty)[pixels])
        confusion = confusion_matrix(flat, own.labels(self.bias), classes)
        self.confusion += confusion
        return confusion

    @cached_property
    def curves(self) -> dict[str, BiasCurve]:
        """Curves with the model's ``own`` gate and with ``none``, of all images."""
        return {"own": self.own.curve(), "none": self.none.curve()}

    def figures(self) -> dict[str, dict[str, float]]:
        """All figures by section, in percent but for biases and probabilities; nan: undefined.

        ``own`` and ``none``: the model's gate and no gate; ``oracle``: the true side of every
        pixel as the gate; `DETECTOR_SECTIONS`: AUROC, AUPR and false positive rate of what could
        tell unseen from seen pixels; ``clutter``: pixels without label, no IoU counts them;
        ``calibration``: the trusty map as a probability; ``rejected``, with BACKGROUND auto alone:
        what is called none of the classes, which the other figures leave out of account.
        """
        found = {name: self._curve_figures(curve) for name, curve in self.curves.items()}
        perfect = summarize(self.oracle, self.seen)
        found["oracle"] = {key: perfect[key] for key in ("hIoU", "mIoU-seen", "mIoU-unseen")}
        gap, gated = self.none.true, self.own.true
        tables = {"trusty map": self.trusty.counts, "score gap": gap, "gated score gap": gated}
        detectors = {
            name + ", class-balanced" * balanced: detector_figures(table, self.seen, balanced)
            for name, table in tables.items()
            for balanced in (False, True)
        }
        for measure, section in DETECTOR_SECTIONS.items():
            found[section] = {name: values[measure] for name, values in detectors.items()}
        own, none = self.curves["own"], self.curves["none"]
        found["clutter"] = {
            "with the model's gate and bias": self.own.unseen_share(own.at(self.bias)),
            "without gate, best bias": self.none.unseen_share(none.best()),
        }
        found["calibration"] = {
            "ECE": self.trusty.reliability(False).error,
            "ECE, class-balanced": self.trusty.reliability(True).error,
            "mean P(seen) on seen pixels": self.trusty.mean(True),
            "mean P(seen) on unseen pixels": self.trusty.mean(False),
        }
        if self.rejected is not None:
            found["rejected"] = self.rejected.figures()
        return found

    def _curve_figures(self, curve: BiasCurve) -> dict[str, float]:
        values = {"bias": self.bias}
        for prefix, index in (("", curve.at(self.bias)), ("best ", curve.best())):
            values[f"{prefix}hIoU"] = float(curve.hiou[index])
            if prefix:
                values["best bias"] = float(curve.biases[index])
            values[f"mIoU-seen{' at best' * bool(prefix)}"] = float(curve.seen[index])
            values[f"mIoU-unseen{' at best' * bool(prefix)}"] = float(curve.unseen[index])
        values["AUSUC"] = curve.area()
        values["AUSUC of accuracy"] = curve.accuracy_area()
        return values

    def content(self) -> dict[str, Any]:
        """All that was found, ready for json: infinite biases are None."""
        curves = {}
        for name, curve in self.curves.items():
            thin = curve.thinned()
            curves[name] = [
                [None if np.isinf(b) else round(float(b), 6), *(round(float(v), 4) for v in values)]
                for b, *values in zip(*vars(thin).values(), strict=True)
            ]
        reliability = {
            name: [[float(value) for value in row] for row in zip(*vars(r).values(), strict=True)]
            for name, r in (
                ("pixels", self.trusty.reliability(False)),
                ("classes", self.trusty.reliability(True)),
            )
        }
        return {"figures": self.figures(), "curves": curves, "reliability": reliability}
