"""Reports of analyses: one page per run, one of several runs, csv and json beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
from tagclip.analysis.figure_tables import comparison_rows, write_comparison_csv, write_tables
from tagclip.analysis.gate_gallery import draw_gate_gallery
from tagclip.analysis.run_analysis import AnalyzedRun, crossing_confusions
from tagclip.evaluation.results import format_json
from tagclip.utils.files import write_atomic
from tagclip.visualization.class_charts import save_chart
from tagclip.visualization.html_page import render
from tagclip.visualization.panels import save_png

__all__ = ["write_comparison", "write_run"]

# Confusions of a kind: drawn, and listed on the page.
_BARS = 12
_CURVES = "seen-unseen curves"


def write_run(run: AnalyzedRun, folder: Path, count: int) -> Path:
    """Write everything about one run; return its page.

    Args:
        run: what was found.
        folder: for its files.
        count: images to draw, at most.
    """
    content, figures = run.json(), run.analysis.figures()
    write_atomic(folder / "analysis.json", format_json(content))
    write_tables(content, folder)
    page = render(
        "report.html.j2",
        __package__,
        title=f"{run.label} on {content['dataset']}, split {content['split'] or 'none'}",
        verdict=run.verdict,
        protocol=run.content["run"].get("protocol"),
        description=_describe(run),
        figures=comparison_rows([figures]),
        charts=_write_charts(run, folder),
        confusions={
            kind: [(a, b, f"{share:.2f}", f"{pixels:,}") for a, b, share, pixels in rows[:_BARS]]
            for kind, rows in content["confusions"].items()
        },
        images=save_png(folder / "images.png", draw_gate_gallery(run, count)).read_bytes(),
    )
    return write_atomic(folder / "report.html", page)


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
    write_comparison_csv(folder / "comparison.csv", labels, figures)
    curves = [c for n, run in enumerate(runs) for c in _named_curves(run, n, f"{run.label}, ")]
    diagrams = {
        run.label: run.analysis.trusty.reliability(True) if _has_trusty(run) else None
        for run in runs
    }
    charts = {_CURVES: draw_curves(curves, f"{dataset}: the seen bias varied")}
    if any(diagrams.values()):
        title = f"{dataset}: reliability, every class weighs the same"
        charts["reliability"] = draw_reliability(diagrams, title)
    page = render(
        "comparison.html.j2",
        __package__,
        title=f"{len(runs)} runs on {dataset}",
        warnings=warnings,
        verdicts=[f"{run.label}: {run.verdict}" for run in runs],
        descriptions=[f"{run.label}: {_describe(run)}" for run in runs],
        labels=labels,
        figures=comparison_rows(figures),
        charts=_save_charts(charts, folder),
    )
    return write_atomic(folder / "comparison.html", page)


def _has_trusty(run: AnalyzedRun) -> bool:
    return run.saved.index["trusty_target"] is not None


def _describe(run: AnalyzedRun) -> str:
    """What was evaluated, in one line."""
    gate, index = run.gate, run.saved.index
    form = "".join(f", {key} {gate[key]}" for key in ("form", "scale") if key in gate)
    target = index["trusty_target"]
    trusty = "no trusty map" if target is None else f"trusty target = {target}"
    tested = (
        " BACKGROUND auto: what it rejects is in the figures; elsewhere every pixel has a class."
        if run.analysis.rejected is not None
        else ""
    )
    return (
        f"{index['images']} images; gate {gate['mode']}{form}, seen bias {gate['bias']:g}; "
        f"{trusty}. From logits in half precision.{tested}"
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
    figures = {_CURVES: draw_curves(_named_curves(run, 0, ""), f"{dataset}: the seen bias varied")}
    if _has_trusty(run):
        diagrams = {
            "every pixel weighs the same": analysis.trusty.reliability(False),
            "every class weighs the same": analysis.trusty.reliability(True),
        }
        figures["reliability"] = draw_reliability(diagrams, f"{dataset}: reliability diagram")
        sides = [analysis.trusty.histogram(flag) for flag in (True, False)]
        figures["histograms"] = draw_trusty_histogram(*sides, f"{dataset}: trusty map")
    groups = {kind: pairs[:_BARS] for kind, pairs in crossing_confusions(analysis).items()}
    if any(groups.values()):
        # No pixel is without a class here.
        counts = np.pad(analysis.confusion, ((0, 0), (0, 1)))
        shares = {kind: kind_share(counts, analysis.seen, kind) for kind in groups}
        title = f"{dataset}: largest confusions"
        figures["confusions"] = draw_confusion_bars(groups, shares, run.vocabulary, title)
    return _save_charts(figures, folder)


def _save_charts(figures: dict[str, Figure], folder: Path) -> dict[str, bytes]:
    """Write figures as PNG files named after what they show."""
    return {
        name: save_chart(
            figure, folder / f"{name.replace(' ', '_').replace('-', '_')}.png"
        ).read_bytes()
        for name, figure in figures.items()
    }
