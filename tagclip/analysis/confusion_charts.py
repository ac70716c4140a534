"""Pictures of confusions that stay readable with hundreds of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from tagclip.analysis.confusions import ALL, KINDS, Confusion, share_text
from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.class_charts import UNSEEN_COLOR, bar_style, class_chart, new_chart
from tagclip.visualization.segments import UNSEEN_MARK, marked_names

__all__ = ["draw_confusion_bars", "draw_confusion_map"]

_CELL = 0.34
_REST = "another or none"
# Shares below it, in percent, are not written: most cells hold a few stray pixels.
_WRITTEN = 1.0
# From this share on, the colour of a cell is dark.
_DARK = 40.0


def draw_confusion_bars(
    groups: Mapping[str, Sequence[Confusion]],
    shares: Mapping[str, float],
    vocabulary: Vocabulary,
    title: str,
) -> Figure:
    """One bar per confusion, the largest of each kind first.

    Args:
        groups: kind -> confusions; at least one.
        shares: kind -> percent of the pixels of its true classes.
        vocabulary: K classes with their partition.
        title: above the chart.
    """
    names = marked_names(vocabulary)
    rows = [(kind, pair) for kind, pairs in groups.items() for pair in pairs]
    styles = {kind: bar_style(true_seen) for (true_seen, _), kind in KINDS.items()}
    styles[ALL] = bar_style(True)
    labels = [f"{names[pair.true]} taken for {names[pair.predicted]}" for _, pair in rows]
    unseen = [not vocabulary.seen_mask[pair.true] for _, pair in rows]
    panel = "percent of the pixels of the true class"
    figure, columns = class_chart(labels, unseen, [panel], title, row_height=0.21)
    for column in columns:
        (axes,) = column.axes
        # Room for the numbers, but no ticks that no share can reach.
        axes.set_xlim(0, 1.4 * max(pair.share for _, pair in rows))
        axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 100])
        for y, position in enumerate(column.classes):
            kind, pair = rows[position]
            axes.barh(y, pair.share, height=0.72, **styles[kind])
            text = f"{pair.share:.1f}  ({pair.pixels:,} pixels)"
            axes.text(pair.share, y, f" {text}", va="center", size=8)
    handles = [
        Patch(**styles[kind], label=f"{kind}: {share_text(kind, f'{shares[kind]:.1f}')}")
        for kind, pairs in groups.items()
        if pairs
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=1, fontsize=8)
    return figure


def draw_confusion_map(
    confusion: np.ndarray,
    pixels: np.ndarray,
    classes: Sequence[int],
    vocabulary: Vocabulary,
    title: str,
) -> Figure:
    """Cells of true (rows) and predicted classes (columns), each row adding up to 100 percent.

    The colour grows with the square root of the share, so that small confusions show.

    Args:
        confusion: (K, K) counts, rows are true classes.
        pixels: (K,) labelled pixels of each class, also those that got no class.
        classes: which to show, seen ones first; the last column is the rest, if there is any.
        vocabulary: K classes with their partition.
        title: above the chart.
    """
    chosen = np.array(classes)
    counts = confusion[np.ix_(chosen, chosen)]
    rest = pixels[chosen] - counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        cells = np.column_stack([counts, rest]) if rest.any() else counts
        shares = 100 * cells / pixels[chosen, None]
    names = marked_names(vocabulary)
    labels = [names[k] for k in chosen]
    height, width = (_CELL * count for count in shares.shape)
    margin = 0.075 * max(map(len, [*labels, _REST]))
    # Beside the cells: names, scale and title.
    size = (max(width + margin + 1.6, 5.0), max(height + margin + 1.1, 3.0))
    figure = new_chart(size, title)
    axes = figure.subplots()
    norm = PowerNorm(0.5, 0, 100)
    image = axes.imshow(np.nan_to_num(shares), cmap="Blues", norm=norm, aspect="equal")
    _write_cells(axes, shares)
    _label_axes(axes, labels, [not vocabulary.seen_mask[k] for k in chosen], bool(rest.any()))
    bar = figure.colorbar(image, ax=axes, shrink=0.6, ticks=[0, 1, 5, 10, 25, 50, 100])
    bar.set_label("percent of the pixels of the true class", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _write_cells(axes: Axes, shares: np.ndarray) -> None:
    for y, x in np.argwhere(shares >= _WRITTEN):
        color = "white" if shares[y, x] >= _DARK else "black"
        axes.text(x, y, f"{shares[y, x]:.0f}", ha="center", va="center", size=7, color=color)
    for k in range(len(shares)):
        axes.add_patch(Rectangle((k - 0.5, k - 0.5), 1, 1, fill=False, lw=1.2, color="black"))


def _label_axes(axes: Axes, labels: Sequence[str], unseen: Sequence[bool], has_rest: bool) -> None:
    count = len(labels)
    axes.set_yticks(range(count), labels, fontsize=8, parse_math=False)
    columns = [*labels, *[_REST] * has_rest]
    axes.set_xticks(range(len(columns)), columns, fontsize=8, rotation=90, parse_math=False)
    for label, flag in zip(
        [*axes.get_yticklabels(), *axes.get_xticklabels()[:count]], [*unseen, *unseen], strict=True
    ):
        if flag:
            label.set(weight="bold", color=UNSEEN_COLOR)
    axes.set_ylabel("true class", fontsize=9)
    star = f"   ({UNSEEN_MARK} unseen)" * any(unseen)
    axes.set_xlabel(f"predicted class{star}", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if has_rest:
        axes.axvline(count - 0.5, color="0.3", lw=1)
    # Between seen and unseen classes.
    border = unseen.index(True) - 0.5 if any(unseen) else 0
    if border > 0:
        axes.axvline(border, color=UNSEEN_COLOR, lw=1.2, ls="--")
        axes.axhline(border, color=UNSEEN_COLOR, lw=1.2, ls="--")
