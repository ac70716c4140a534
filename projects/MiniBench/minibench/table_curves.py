"""Seen-unseen curves of MiniBench's table as one picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tagclip.analysis.charts import draw_hiou_levels
from tagclip.projects.minibench.table_runs import SPLITS

__all__ = ["SHOWN", "STRICT", "draw_curves"]

# (label, run, gate, colour); the given bias is a dot.
Lines = tuple[tuple[str, str, str, str], ...]
SHOWN: Lines = (
    ("ZegCLIP", "ZegCLIP", "none", "#5b6470"),
    ("token, target seen", "TagCLIP token seen", "product", "#c2571a"),
    ("token, target novel", "TagCLIP token novel", "product", "#a07c00"),
    ("convolutional head", "TagCLIP conv", "product", "#1f6fb2"),
)
# Training images without unseen objects.
STRICT: Lines = (
    ("no map", "relative without unseen images", "none", "#5b6470"),
    ("ZegCLIP", "ZegCLIP without unseen images", "none", "#a07c00"),
    ("convolutional head", "conv without unseen images", "product", "#c2571a"),
    ("relative map", "relative without unseen images", "product", "#1f6fb2"),
)


def draw_curves(
    results: dict[tuple[str, str, int], dict[str, Any]], shown: Lines = SHOWN
) -> Figure:
    """Draw what every seen bias gives, one panel per split, one line per seed.

    Args:
        results: (split, run, seed) -> what `run_one` returned.
        shown: label, run, gate and colour of each kind of line.
    """
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, len(SPLITS), sharey=True)
    for axes, split in zip(panels, SPLITS, strict=True):
        for label, run, gate, colour in shown:
            own = [r for (s, name, _), r in sorted(results.items()) if (s, name) == (split, run)]
            for index, result in enumerate(own):
                found = result["gates"][gate]
                unseen, seen = np.array(found["curve"]).T
                legend = label if index == 0 else None
                axes.plot(unseen, seen, color=colour, alpha=0.55, linewidth=1.2, label=legend)
                axes.plot(found["given"]["U"], found["given"]["S"], "o", color=colour, markersize=4)
        draw_hiou_levels(axes)
        axes.set(title=split, xlabel="mIoU-unseen (%)", xlim=(0, 100), ylim=(0, 100))
        axes.set_aspect("equal")
    panels[0].set_ylabel("mIoU-seen (%)")
    panels[0].legend(loc="lower left", fontsize=8, framealpha=0.9)
    return figure
