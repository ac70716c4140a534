"""Charts with one row per class, readable from one class to hundreds; colours and set-up of all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tagclip.utils.files import write_atomic
from tagclip.visualization.fonts import set_fonts

__all__ = [
    "SEEN_COLOR",
    "UNSEEN_COLOR",
    "ChartColumn",
    "bar_style",
    "class_chart",
    "new_chart",
    "save_chart",
    "series_style",
    "style_axes",
]

# Okabe and Ito's colours: different for all kinds of colour vision.
_SERIES_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_SERIES_MARKERS = "os^Dv*P"
SEEN_COLOR, UNSEEN_COLOR = "#0072B2", "#D55E00"
_ROWS = 100


@dataclass(frozen=True)
class ChartColumn:
    """A part of the classes below each other.

    Attributes:
        classes: their indices; the i-th one is drawn at y = i.
        axes: one per panel, side by side.
    """

    classes: range
    axes: tuple[Axes, ...]


def new_chart(size: tuple[float, float], title: str) -> Figure:
    """Start a chart.

    Args:
        size: (width, height) in inches.
        title: above it.
    """
    figure = Figure(size, dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def style_axes(*panels: Axes) -> None:
    """Draw a pale grid behind what is drawn, and small numbers beside it."""
    for axes in panels:
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)


def series_style(index: int) -> dict[str, str]:
    """Colour and marker of a series, such as a run, by its index."""
    return {
        "color": _SERIES_COLORS[index % len(_SERIES_COLORS)],
        "marker": _SERIES_MARKERS[index % len(_SERIES_MARKERS)],
    }


def bar_style(seen: bool) -> dict[str, object]:
    """Colour of the bar of a seen or an unseen class; the latter is hatched."""
    style = {"facecolor": SEEN_COLOR} if seen else {"facecolor": UNSEEN_COLOR, "hatch": "////"}
    return {"edgecolor": "white", "linewidth": 0, **style}


def class_chart(
    names: Sequence[str],
    unseen: Sequence[bool],
    panels: Sequence[str],
    title: str,
    row_height: float = 0.18,
) -> tuple[Figure, list[ChartColumn]]:
    """Prepare a chart; more than 100 classes go into several columns of equal height.

    Args:
        names: K labels of the rows, from top to bottom.
        unseen: K flags; True makes a label bold and coloured.
        panels: titles of the panels of each row.
        title: above the chart.
        row_height: in inches.

    Returns:
        The figure, and its columns to draw into.
    """
    count = -(-len(names) // _ROWS)
    rows = -(-len(names) // count)
    width = 1.0 + 0.075 * max(map(len, names)) + 2.4 * len(panels)
    size = (max(width * count, 7.0), 1.5 + rows * row_height)
    figure = new_chart(size, title)
    grid = figure.subplots(1, count * len(panels), squeeze=False)[0]
    columns = []
    for start in range(0, len(names), rows):
        classes = range(start, min(start + rows, len(names)))
        first = len(columns) * len(panels)
        axes = tuple(grid[first : first + len(panels)])
        for axis, panel in zip(axes, panels, strict=True):
            axis.set_title(panel, fontsize=9)
            axis.set_ylim(rows - 0.4, -0.6)
            axis.set_yticks(range(len(classes)), [""] * len(classes))
            axis.tick_params(axis="x", labelsize=8)
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="x", color="0.88", linewidth=0.8)
            axis.set_axisbelow(True)
            axis.spines[["top", "right", "left"]].set_visible(False)
        labels = axes[0].set_yticklabels([names[k] for k in classes], fontsize=8, parse_math=False)
        for label, k in zip(labels, classes, strict=True):
            if unseen[k]:
                label.set(weight="bold", color=UNSEEN_COLOR)
        columns.append(ChartColumn(classes, axes))
    return figure, columns


def save_chart(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG; the file is complete or absent."""
    buffer = io.BytesIO()
    set_fonts(figure)
    # No version of matplotlib inside: the same picture is the same file.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return write_atomic(path, buffer.getvalue())
