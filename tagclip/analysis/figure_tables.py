"""Figures of one or several analyses as rows for a page, and everything else as csv."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tagclip.utils.files import write_atomic
from tagclip.utils.text import format_csv

__all__ = ["comparison_rows", "write_comparison_csv", "write_tables"]

Figures = Mapping[str, Mapping[str, float]]

# Sections of `GateAnalysis.figures`.
_SECTIONS = {
    "own": "model's gate",
    "none": "no gate",
    "oracle": "oracle gate",
    "detector": "detection of unseen pixels: AUROC of",
    "detector AUPR": "detection of unseen pixels: AUPR of",
    "detector FPR at 95 % TPR": "detection of unseen pixels: FPR at 95 % TPR of",
    "clutter": "unlabelled pixels that get an unseen class",
    "calibration": "trusty map as a probability",
    "rejected": "BACKGROUND auto",
}
# Not in percent.
_PLAIN = ("bias", "best bias", "mean P(seen) on seen pixels", "mean P(seen) on unseen pixels")


def comparison_rows(figures: Sequence[Figures]) -> list[tuple[str, ...]]:
    """(section, figure, one value per run) with differences to the first run in brackets.

    Values are in percent but for biases and P; n/a where undefined.
    """
    rows = []
    for section, name, base, *others in _figure_rows(figures):
        cells = [_format(name, base)]
        for value in others:
            known = not (math.isnan(value) or math.isnan(base))
            change = f" ({_format(name, value - base, '+')})" * known
            cells.append(_format(name, value) + change)
        rows.append((_SECTIONS[section], name, *cells))
    return rows


def _figure_rows(figures: Sequence[Figures]) -> list[tuple[Any, ...]]:
    """(section, figure, one value per run); nan for a run that has no such figure."""
    rows = dict.fromkeys((s, name) for run in figures for s in run for name in run[s])
    return [
        (section, name, *(run.get(section, {}).get(name, math.nan) for run in figures))
        for section, name in rows
    ]


def _format(name: str, value: float, sign: str = "") -> str:
    if math.isnan(value):
        return "n/a"
    digits = 3 if name in _PLAIN else 2
    # Adding 0 turns -0 into 0.
    return f"{round(value, digits) + 0:{sign}.{digits}f}"


def write_comparison_csv(path: Path, labels: Sequence[str], figures: Sequence[Figures]) -> None:
    """Write the figures of runs with these labels."""
    write_atomic(path, format_csv(("section", "figure", *labels), _figure_rows(figures)))


def write_tables(content: dict[str, Any], folder: Path) -> None:
    """Write figures, curves, reliability diagrams and confusions as csv.

    Args:
        content: of ``analysis.json``.
        folder: for the files.
    """
    write_comparison_csv(folder / "figures.csv", ["value"], [content["figures"]])
    curves = [(name, *row) for name, rows in content["curves"].items() for row in rows]
    head = ("gate", "bias", "mIoU-seen", "mIoU-unseen", "ACC-seen", "ACC-unseen")
    write_atomic(folder / "curves.csv", format_csv(head, curves))
    bins = [(name, *row) for name, rows in content["reliability"].items() for row in rows]
    write_atomic(
        folder / "reliability.csv",
        format_csv(("weights", "mass", "P(seen)", "share of seen"), bins),
    )
    pairs = [(kind, *row) for kind, rows in content["confusions"].items() for row in rows]
    head = ("kind", "class", "taken for", "percent of its pixels", "pixels")
    write_atomic(folder / "confusions.csv", format_csv(head, pairs))
