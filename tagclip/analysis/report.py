"""Reports of analyses: one page per run, one of several runs, csv and json beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tagclip.analysis.charts import (
    NamedCurve,
    draw_curves,
    draw_reliability,
    draw_trusty_histogram,
)
from tagclip.analysis.confusion_charts import draw_confusion_bars
from tagclip.analysis.confusions import kind_share
from tagclip.analysis.page import comparison_rows, figure_rows, render_page
from tagclip.analysis.panels import choose_images, draw_images
from tagclip.analysis.run import AnalyzedRun, crossing_confusions
from tagclip.evaluation.results import format_json
from tagclip.utils.files import write_atomic
from tagclip.utils.text import format_csv
from tagclip.visualization.class_charts import save_chart
from tagclip.visualization.panels import save_png

__all__ = ["write_comparison", "write_run"]

# Confusions of a kind: drawn, and listed on the page.
BARS = 12
CURVES = "seen-unseen curves"
BEST_NOTE = (
    "Best hIoU and best bias are chosen on these very images: bounds on what a bias can do, no "
    "results. AUSUC is the area below the trade-off of the two mIoU as the bias varies; that of "
    "accuracy is the one that Chao et al. (2016) define. The oracle gate knows the true side of "
    "each pixel. "
    "Score gap: the best unseen score minus the best seen one; gated: after the model's gate."
)


def write_run(run: AnalyzedRun, folder: Path, count: int) -> Path:
    """Write everything about one run; return its page.

    Args:
        run: what was found.
        folder: for its files.
        count: images to draw, at most.
    """
    content = run.json()
    write_atomic(folder / "analysis.json", format_json(content))
    _write_tables(content, folder)
    pictures = _write_charts(run, folder)
    images = draw_images(run, choose_images(run, count))
    panels = save_png(folder / "images.png", images).read_bytes()
    head = ("", "figure", "percent")
    charts = {name: pictures[name] for name in pictures if name not in (CURVES, "confusions")}
    parts = [
        ("", [f"Protocol: {run.content['run'].get('protocol')}.", _describe(run)]),
        ("Figures", [[head, *figure_rows(run.analysis.figures())], BEST_NOTE]),
        ("Seen bias", [{CURVES: pictures[CURVES]}]),
        *([("Trusty map", [charts])] if charts else []),
        ("Seen and unseen classes taken for each other", _confusion_parts(content, pictures)),
        ("Images", ["At even distances in their ranking by mIoU.", {"images": panels}]),
    ]
    title = f"{run.label} on {content['dataset']}, split {content['split'] or 'none'}"
    return write_atomic(folder / "report.html", render_page(title, parts))


def _has_trusty(run: AnalyzedRun) -> bool:
    return run.saved.index["trusty_target"] is not None


def _describe(run: AnalyzedRun) -> str:
    """What was evaluated, in one line."""
    gate, index = run.gate, run.saved.index
    form = "".join(f", {key} {gate[key]}" for key in ("form", "scale") if key in gate)
    target = index["trusty_target"]
    trusty = "no trusty map" if target is None else f"trusty target = {target}"
    return (
        f"{index['images']} images; gate {gate['mode']}{form}, seen bias {gate['bias']:g}; "
        f"{trusty}. From logits in half precision."
    )


def _named_curves(run: AnalyzedRun, number: int, prefix: str) -> list[NamedCurve]:
    """The run's curve with its gate and, if it has one, that without."""
    curves, oracle = run.analysis.curves, run.analysis.figures()["oracle"]
    place = (oracle["mIoU-unseen"], oracle["mIoU-seen"])
    bias, has_gate = run.analysis.bias, run.analysis.has_gate
    name = f"{prefix}{'gate ' + run.gate['mode'] if has_gate else 'no gate'}"
    label = f"{name}: AUSUC {curves['own'].area():.1f}"
    found = [NamedCurve(label, curves["own"], bias, number, False, place)]
    if has_gate:
        label = f"{prefix}no gate: AUSUC {curves['none'].area():.1f}"
        found.append(NamedCurve(label, curves["none"], None, number, True))
    return found


def _write_charts(run: AnalyzedRun, folder: Path) -> dict[str, bytes]:
    """Draw the charts of one run; return them by what they show."""
    analysis, dataset = run.analysis, run.saved.index["dataset"]
    figures = {CURVES: draw_curves(_named_curves(run, 0, ""), f"{dataset}: the seen bias varied")}
    if _has_trusty(run):
        diagrams = {
            "every pixel weighs the same": analysis.trusty.reliability(False),
            "every class weighs the same": analysis.trusty.reliability(True),
        }
        figures["reliability"] = draw_reliability(diagrams, f"{dataset}: reliability diagram")
        sides = [analysis.trusty.histogram(flag) for flag in (True, False)]
        figures["histograms"] = draw_trusty_histogram(*sides, f"{dataset}: trusty map")
    groups = {kind: pairs[:BARS] for kind, pairs in crossing_confusions(analysis).items()}
    if any(groups.values()):
        counts = _add_column(analysis.confusion)
        shares = {kind: kind_share(counts, analysis.seen, kind) for kind in groups}
        title = f"{dataset}: largest confusions"
        figures["confusions"] = draw_confusion_bars(groups, shares, run.vocabulary, title)
    return _save_charts(figures, folder)


def _add_column(confusion: Any) -> Any:
    """(K, K) counts -> (K, K + 1): no pixel is without a class here."""
    return np.pad(confusion, ((0, 0), (0, 1)))


def _save_charts(figures: dict[str, Figure], folder: Path) -> dict[str, bytes]:
    """Write figures as PNG files named after what they show."""
    return {
        name: save_chart(
            figure, folder / f"{name.replace(' ', '_').replace('-', '_')}.png"
        ).read_bytes()
        for name, figure in figures.items()
    }


def _confusion_parts(content: dict[str, Any], pictures: dict[str, bytes]) -> list[Any]:
    """Tables of the largest confusions, and their chart."""
    parts: list[Any] = [{"confusions": pictures["confusions"]}] if "confusions" in pictures else []
    for kind, rows in content["confusions"].items():
        head = (kind.split()[0], f"taken for {kind.split()[-1]}", "percent of its pixels", "pixels")
        cells = [(a, b, f"{share:.2f}", f"{pixels:,}") for a, b, share, pixels in rows[:BARS]]
        parts.append([head, *cells] if cells else f"No {kind}.")
    return parts


def _write_tables(content: dict[str, Any], folder: Path) -> None:
    """Write figures, curves, reliability diagrams and confusions as csv."""
    figures = [
        (section, name, value)
        for section, values in content["figures"].items()
        for name, value in values.items()
    ]
    _write_csv(folder / "figures.csv", ("section", "figure", "value"), figures)
    curves = [(name, *row) for name, rows in content["curves"].items() for row in rows]
    head = ("gate", "bias", "mIoU-seen", "mIoU-unseen", "ACC-seen", "ACC-unseen")
    _write_csv(folder / "curves.csv", head, curves)
    bins = [(name, *row) for name, rows in content["reliability"].items() for row in rows]
    _write_csv(folder / "reliability.csv", ("weights", "mass", "P(seen)", "share of seen"), bins)
    pairs = [(kind, *row) for kind, rows in content["confusions"].items() for row in rows]
    head = ("kind", "class", "taken for", "percent of its pixels", "pixels")
    _write_csv(folder / "confusions.csv", head, pairs)


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    write_atomic(path, format_csv(head, rows))


def write_comparison(runs: Sequence[AnalyzedRun], warnings: Sequence[str], folder: Path) -> Path:
    """Write what several runs have in common, side by side; return the page.

    Args:
        runs: on one dataset; differences are to the first.
        warnings: what forbids to compare them.
        folder: for ``comparison.html``, ``.json`` and ``.csv``, and the charts.
    """
    figures = [run.analysis.figures() for run in runs]
    labels = [run.label for run in runs]
    dataset = runs[0].saved.index["dataset"]
    content = {"dataset": dataset, "warnings": list(warnings), "runs": labels, "figures": figures}
    write_atomic(folder / "comparison.json", format_json(content))
    rows = [
        (section, name, *(other[section][name] for other in figures))
        for section, values in figures[0].items()
        for name in values
    ]
    _write_csv(folder / "comparison.csv", ("section", "figure", *labels), rows)
    curves = [c for n, run in enumerate(runs) for c in _named_curves(run, n, f"{run.label}, ")]
    diagrams = {
        run.label: run.analysis.trusty.reliability(True) if _has_trusty(run) else None
        for run in runs
    }
    charts = {CURVES: draw_curves(curves, f"{dataset}: the seen bias varied")}
    if any(diagrams.values()):
        title = f"{dataset}: reliability, every class weighs the same"
        charts["reliability"] = draw_reliability(diagrams, title)
    pictures = _save_charts(charts, folder)
    parts = [
        ("", [f"Warning: {text}." for text in warnings]),
        ("Runs", [f"{run.label}: {_describe(run)}" for run in runs]),
        ("Figures", [[("", "figure", *labels), *comparison_rows(figures)], BEST_NOTE]),
        ("Curves", [{name: png} for name, png in pictures.items()]),
    ]
    title = f"{len(runs)} runs on {dataset}"
    return write_atomic(folder / "comparison.html", render_page(title, parts))
