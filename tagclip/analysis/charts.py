"""Charts of what saved logits tell; distinguishable without colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from tagclip.analysis.bias_curves import BiasCurve
from tagclip.analysis.calibration import Reliability
from tagclip.visualization.class_charts import bar_style, new_chart, series_style, style_axes

__all__ = [
    "NamedCurve",
    "draw_curves",
    "draw_hiou_levels",
    "draw_reliability",
    "draw_trusty_histogram",
]

# Biases that are drawn; scores lie in [0, 1].
_REACH = 1.0


@dataclass(frozen=True)
class NamedCurve:
    """A curve of a run.

    Attributes:
        label: for the legend.
        curve: what to draw.
        bias: the configured one, marked by a filled sign; None marks none.
        run: number of the run, which decides colour and sign.
        dashed: whether it is the one without the gate.
        oracle: (mIoU-unseen, mIoU-seen) of the oracle gate, marked by a cross; None marks none.
    """

    label: str
    curve: BiasCurve
    bias: float | None
    run: int = 0
    dashed: bool = False
    oracle: tuple[float, float] | None = None


def draw_curves(curves: Sequence[NamedCurve], title: str) -> Figure:
    """mIoU-seen over mIoU-unseen as the bias varies, and hIoU over the bias.

    Args:
        curves: at least one.
        title: above the chart.
    """
    figure = new_chart((11, 5.6), title)
    plane, line = figure.subplots(1, 2, width_ratios=(1, 1.1))
    draw_hiou_levels(plane)
    for named in curves:
        _draw_curve(plane, line, named)
    plane.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    plane.set_xlabel("mIoU-unseen in percent")
    plane.set_ylabel("mIoU-seen in percent")
    plane.set_title("filled: configured bias; open: best; x: oracle gate", fontsize=9)
    line.set(xlim=(-_REACH, _REACH), ylim=(0, 100))
    line.set_xlabel("seen bias (larger: fewer pixels get seen classes)")
    line.set_ylabel("hIoU in percent")
    line.set_title("dotted: configured bias", fontsize=9)
    style_axes(plane, line)
    handles, labels = plane.get_legend_handles_labels()
    _name_runs(figure.legend(handles, labels, loc="outside lower left", ncols=1, fontsize=8))
    return figure


def _name_runs(legend: Legend) -> None:
    """Write names of runs as they are: a dollar sign starts no formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_curve(plane: Axes, line: Axes, named: NamedCurve) -> None:
    curve = named.curve
    color, marker = series_style(named.run).values()
    style = {"color": color, "ls": "--" if named.dashed else "-", "lw": 1.6}
    plane.plot(curve.unseen, curve.seen, label=named.label, **style)
    line.plot(curve.biases[1:-1], curve.hiou[1:-1], **style)
    open_sign = {"marker": marker, "ms": 8, "mfc": "none", "mec": color, "ls": "", "zorder": 4}
    filled = open_sign | {"mfc": color}
    best = curve.best()
    plane.plot(curve.unseen[best], curve.seen[best], **open_sign)
    line.plot(curve.biases[best], curve.hiou[best], **open_sign)
    if named.bias is not None:
        own = curve.at(named.bias)
        plane.plot(curve.unseen[own], curve.seen[own], **filled)
        line.plot(named.bias, curve.hiou[own], **filled)
        line.axvline(named.bias, color=color, ls=":", lw=1)
    if named.oracle is not None:
        plane.plot(*named.oracle, marker="x", ms=9, mew=2, color=color, ls="")


def draw_hiou_levels(axes: Axes) -> None:
    """Draw lines of equal hIoU where both axes go from 0 to 100 percent."""
    unseen = np.linspace(0.5, 100, 400)
    for level in range(10, 100, 10):
        with np.errstate(divide="ignore"):
            seen = level * unseen / (2 * unseen - level)
        seen = np.where((2 * unseen > level) & (seen <= 100), seen, np.nan)
        axes.plot(unseen, seen, color="0.82", lw=0.8, zorder=1)
        axes.annotate(
            f"{level}", (level, level), color="0.45", fontsize=7, ha="center", va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip


def draw_reliability(diagrams: Mapping[str, Reliability | None], title: str) -> Figure:
    """True share of seen pixels over P(seen), with the mass of the bins below.

    Args:
        diagrams: name -> diagram, at least one; None keeps the colour of one that there is not.
        title: above the chart.
    """
    figure = new_chart((5.6, 5.6), title)
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    upper.plot([0, 1], [0, 1], color="0.5", ls=":", lw=1.2, label="perfect")
    drawn = [(n, name, d) for n, (name, d) in enumerate(diagrams.items()) if d is not None]
    width = 1 / (len(drawn[0][2].mass) * (len(drawn) + 1))
    for place, (index, name, diagram) in enumerate(drawn):
        style, used = series_style(index), diagram.mass > 0
        label = f"{name}: ECE {diagram.error:.1f} %"
        upper.plot(
            diagram.confidence[used], diagram.share[used], lw=1.2, ms=5, label=label, **style
        )
        lefts = np.arange(len(diagram.mass)) / len(diagram.mass) + width * (place + 0.5)
        lower.bar(lefts, 100 * diagram.mass, width, align="edge", color=style["color"])
    upper.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    upper.set_ylabel("true share of seen pixels")
    _name_runs(upper.legend(fontsize=8, loc="lower right"))
    lower.set_xlabel("P(seen) of the trusty map")
    lower.set_ylabel("percent")
    style_axes(upper, lower)
    return figure


def draw_trusty_histogram(seen: np.ndarray, unseen: np.ndarray, title: str) -> Figure:
    """P(seen) on the pixels of seen and of unseen classes.

    Args:
        seen: (B,) percent of the seen pixels in bins of equal width.
        unseen: (B,) percent of the unseen pixels.
        title: above the chart.
    """
    figure = new_chart((5.6, 5.6), title)
    lefts, width = np.arange(len(seen)) / len(seen), 1 / len(seen)
    # One above the other: overlapping bars would hide each other.
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    for axes, values, flag in zip(panels, (seen, unseen), (True, False), strict=True):
        axes.bar(lefts, values, width, align="edge", **bar_style(flag))
        axes.set_title(f"pixels of {'seen' if flag else 'unseen'} classes", fontsize=9)
        axes.set(xlim=(0, 1), yscale="log", ylim=(0.01, 100))
        axes.set_ylabel("percent of them")
        axes.yaxis.set_major_formatter("{x:g}")
    style_axes(*panels)
    axes.set_xlabel("P(seen) of the trusty map")
    return figure
