"""Curves and bars of a run; distinguishable without colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.class_charts import SEEN_COLOR, UNSEEN_COLOR, bar_style, class_chart
from tagclip.visualization.segments import UNSEEN_MARK, marked_names

__all__ = ["draw_per_class_iou", "draw_training_curve"]

_LOSSES = {
    "total_loss": {"label": "total", "color": "black"},
    "loss_mask": {"label": "mask (focal)", "color": SEEN_COLOR, "ls": "--"},
    "loss_dice": {"label": "Dice", "color": "#009E73", "ls": ":"},
    "loss_trusty": {"label": "trusty", "color": UNSEEN_COLOR, "ls": "-."},
}
_SCORES = {
    "pixel_accuracy": {"label": "pixel accuracy, training", "color": "black", "ls": "-"},
    "sem_seg/mIoU-seen": {"label": "mIoU-seen, test", "color": SEEN_COLOR, "marker": "s"},
    "sem_seg/mIoU-unseen": {"label": "mIoU-unseen, test", "color": UNSEEN_COLOR, "marker": "*"},
    "sem_seg/hIoU": {"label": "hIoU, test", "color": "#555555", "marker": "D"},
}


def draw_training_curve(curve: Mapping[int, Mapping[str, float | None]]) -> Figure:
    """Losses, learning rate, and accuracy in training beside mIoU where it was evaluated.

    Args:
        curve: iteration -> what was logged there, as in the run's ``metrics.json``; None where a
            mean has no class.
    """
    figure = Figure(figsize=(11, 3.6), dpi=100, layout="constrained")
    losses, rate, scores = figure.subplots(1, 3)
    for key, style in _LOSSES.items():
        _plot(losses, curve, key, **style)
    losses.set(title="losses, as weighted", yscale="log")
    losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    losses.yaxis.set_major_formatter("{x:g}")
    losses.yaxis.set_minor_formatter(NullFormatter())
    _plot(rate, curve, "lr", color="black")
    rate.set_title("learning rate")
    for key, style in _SCORES.items():
        _plot(scores, curve, key, **{"ls": ":", "ms": 7} | style)
    scores.set(title="accuracy and IoU in percent", ylim=(0, 100))
    for axes in (losses, rate, scores):
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="0.88")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=9)
    return figure


def _plot(
    axes: Axes, curve: Mapping[int, Mapping[str, float | None]], key: str, **style: Any
) -> None:
    points = [(step, entry[key]) for step, entry in curve.items() if entry.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def draw_per_class_iou(ious: Sequence[float | None], vocabulary: Vocabulary) -> Figure:
    """Bars: seen classes, then unseen ones, best first, each with their mean.

    Args:
        ious: K values in percent, None where undefined.
        vocabulary: K classes.
    """
    names, seen = marked_names(vocabulary), vocabulary.seen or (True,) * len(vocabulary)
    order = sorted(range(len(names)), key=lambda k: (not seen[k], ious[k] is None, -(ious[k] or 0)))
    unseen = [not seen[k] for k in order]
    title = "IoU per class in percent"
    title += f" ({UNSEEN_MARK} and hatched: counts as unseen)" * any(unseen)
    figure, columns = class_chart([names[k] for k in order], unseen, [""], title, row_height=0.21)
    means = {flag: _mean([ious[k] for k in order if seen[k] is flag]) for flag in (True, False)}
    for column in columns:
        (axes,) = column.axes
        axes.set_xlim(0, 110)
        for row, position in enumerate(column.classes):
            k = order[position]
            _draw_bar(axes, row, ious[k], seen[k])
            axes.plot([means[seen[k]]] * 2, [row - 0.5, row + 0.5], color="black", ls="--", lw=1)
    kinds = {True: "mIoU-seen" if any(unseen) else "mIoU", False: "mIoU-unseen"}
    texts = [f"{kinds[flag]} {mean:.1f}" for flag, mean in means.items() if not np.isnan(mean)]
    figure.supxlabel(f"dashed: {', '.join(texts)}", fontsize=9)
    return figure


def _draw_bar(axes: Axes, row: int, iou: float | None, seen: bool) -> None:
    axes.barh(row, iou or 0.0, height=0.7, **bar_style(seen))
    text = "n/a" if iou is None else f"{iou:.1f}"
    # A white ground: the line of the mean may pass behind.
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.text((iou or 0.0) + 1, row, text, va="center", size=8, bbox=ground)


def _mean(values: Sequence[float | None]) -> float:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else float("nan")
