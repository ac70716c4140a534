#!/usr/bin/env python
"""Compare evaluated runs: metrics, what they depend on, every class.

tagclip compare output/run_a output/run_b
tagclip compare output/seed_* --dataset minibench_test

Prints the metrics of each dataset, with differences to the first run in
brackets, and warns where runs are not comparable, as on other images or
labels. Runs that differ in the seed alone get a mean; of a run that was
trained otherwise (iterations, config, images) a line says so. Writes
<dataset>.md (with every class) and <dataset>.png below --output.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tagclip.utils.cli import run_tool
from tagclip.utils.files import write_atomic
from tagclip.utils.run_lock import RunLock
from tagclip.utils.tool_parser import ToolParser

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tagclip.analysis.comparison import ClassRow, RunResult

METRICS = {
    "seen": "mIoU-seen",
    "unseen": "mIoU-unseen",
    "hIoU": "hIoU",
    "mIoU": "mIoU",
    "pAcc": "pAcc",
    "AUROC": "trusty-AUROC",
    "AUPR": "trusty-AUPR",
    "FPR95": "trusty-FPR95",
}
CONDITIONS = {
    "config": "config",
    "setting": "setting",
    "seed": "seed",
    "trusty map": "trusty_kind",
    "trusty target": "trusty_target",
    "gate": "gate",
    "gate form": "gate_form",
    "seen bias": "seen_bias",
    "background": "background",
    "templates": "templates",
    "weights": "weights",
    "start": "start",
    "CLIP": "clip",
    "commit": "git_commit",
}
STAR = "\N{BLACK STAR}"


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="OUTPUT_DIR of an evaluated run")
    parser.add_argument(
        "--dataset", metavar="NAME", default="", help="only this one (default: all in common)"
    )
    parser.add_argument("--output", type=Path, default=Path("output/compare_runs"), help="folder")
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    return make_parser().parse_args(args)


def main(args: argparse.Namespace) -> None:
    """Compare on every dataset.

    Raises:
        TagCLIPError: a folder holds no evaluated run, or another process works in --output.
    """
    from tagclip.analysis.comparison import class_rows, differences, load_results, questions

    with RunLock(args.output, "--output"):
        for dataset, results in load_results(args.runs, args.dataset).items():
            rows = class_rows(results)
            warnings = differences(results) + questions(results)
            summary = format_summary(dataset, results, warnings)
            print(summary)
            path = args.output / f"{dataset}.md"
            write_atomic(path, f"{summary}\n{format_classes(rows, results)}")
            message = f"Written: {path}"
            if rows:
                draw_classes(rows, results, dataset, path.with_suffix(".png"))
                message += f" and {path.with_suffix('.png')}"
            print(message)


def format_summary(dataset: str, results: Sequence[RunResult], warnings: Sequence[str]) -> str:
    """Markdown of the metrics, of what the runs depend on, and of warnings."""
    from tagclip.analysis.comparison import training_differences
    from tagclip.utils.text import markdown_table

    head = ["", *CONDITIONS]
    conditions = [
        [str(index), *(_condition(result, key) for key in CONDITIONS.values())]
        for index, result in enumerate(results, start=1)
    ]
    iterations = [result.iterations for result in results]
    if len({count for count in iterations if count is not None}) > 1:
        head.append("iterations")
        for row, count in zip(conditions, iterations, strict=True):
            row.append("" if count is None else str(count))
    lines = [
        f"# {dataset}, {results[0].content['images']} images",
        "",
        markdown_table(["", "run", *columns(results)], metric_rows(results)),
        "",
        "In percent, seen and unseen as in the split; in brackets the difference to the first run.",
        "",
        markdown_table(head, conditions),
        "",
    ]
    protocols = {}
    for index, result in enumerate(results, start=1):
        protocols.setdefault(str(result.run("protocol")), []).append(str(index))
    lines += [f"- Protocol of {', '.join(runs)}: {text}" for text, runs in protocols.items()]
    lines += [f"- {text}" for text in training_differences(results)]
    lines += [f"- **Warning:** {text}" for text in warnings]
    return "\n".join(lines) + "\n"


def columns(results: Sequence[RunResult]) -> dict[str, str]:
    """Heading -> metric: the usual ones, and those that only a score has."""
    more = [name for result in results for name in result.conventions]
    if any("boundary-mIoU" in result.content["metrics"] for result in results):
        more.insert(0, "boundary-mIoU")
    return METRICS | {name: name for name in more}


def metric_rows(results: Sequence[RunResult]) -> list[list[str]]:
    """One row per run, then mean and standard deviation of runs that differ in the seed only."""
    from tagclip.analysis.comparison import repetitions

    rows, names = [], columns(results).values()
    for index, result in enumerate(results, start=1):
        cells = []
        for name in names:
            value, base = result.metric(name), results[0].metric(name)
            text = "n/a" if value is None else f"{value:.2f}"
            if index > 1 and value is not None and base is not None:
                text += f" ({value - base:+.2f})"
            cells.append(text)
        rows.append([str(index), result.label, *cells])
    for group in repetitions(results):
        numbers = ", ".join(str(results.index(result) + 1) for result in group)
        cells = []
        for name in names:
            values = [result.metric(name) for result in group]
            known = None not in values
            cells.append(
                f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
                if known
                else "n/a"
            )
        rows.append(["", f"mean ± std of {numbers}", *cells])
    return rows


def format_classes(rows: Sequence[ClassRow], results: Sequence[RunResult]) -> str:
    """Markdown of the IoU of every class, largest gain first."""
    from tagclip.utils.text import markdown_table

    numbers = [str(index) for index in range(1, len(results) + 1)]
    several = len(results) > 1
    cells = []
    for row in rows:
        values = [_percent(value) for value in row.iou]
        change = [_percent(row.difference, "+")] if several else []
        part = {True: "seen", False: "unseen", None: ""}[row.seen]
        cells.append([row.name, part, *values, *change])
    by_masks = results[0].is_seen_by_masks
    head = ["class", "by masks" * by_masks, *(f"IoU {number}" for number in numbers)]
    head += ["difference" if len(results) == 2 else "mean difference"] * several
    missing = len(results[0].content["classes"]) - len(rows)
    note = f"\n{missing} classes of the first run are not in all runs.\n" if missing else ""
    if by_masks:
        note += "\nBy masks: seen are classes whose masks trained run 1, not those of the split.\n"
    return f"{markdown_table(head, cells)}\n{note}"


def draw_classes(
    rows: Sequence[ClassRow], results: Sequence[RunResult], dataset: str, path: Path
) -> None:
    """Draw the IoU of every class in every run, and the differences to the first run."""
    from matplotlib.lines import Line2D

    from tagclip.visualization.class_charts import class_chart, save_chart, series_style

    unseen = [row.seen is False for row in rows]
    names = [f"{STAR} {row.name}" if row.seen is False else row.name for row in rows]
    several = len(results) > 1
    panels = ["IoU (%)", *["difference to run 1 (points)"] * several]
    kind = "unseen by the masks of run 1" if results[0].is_seen_by_masks else "unseen class"
    title = f"{dataset}: IoU per class" + f" ({STAR}: {kind})" * any(unseen)
    figure, columns = class_chart(names, unseen, panels, title, max(0.18, 0.05 * len(results)))
    for column in columns:
        draw_values(column.axes[0], [rows[k].iou for k in column.classes])
        if several:
            draw_differences(column.axes[1], [rows[k].iou for k in column.classes])
    if several:
        reach = max(abs(end) for column in columns for end in column.axes[1].get_xlim())
        for column in columns:
            column.axes[1].set_xlim(-reach, reach)
    handles = [
        Line2D([], [], linestyle="", **series_style(i), label=f"{i + 1}: {result.label}")
        for i, result in enumerate(results)
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=1, fontsize=8)
    save_chart(figure, path)


def draw_values(axis: Axes, values: Sequence[Sequence[float]]) -> None:
    """One line per class from its lowest to its highest IoU, one mark per run on it."""
    from tagclip.visualization.class_charts import series_style

    axis.set_xlim(-2, 102)
    known = [(y, [v for v in row if not math.isnan(v)]) for y, row in enumerate(values)]
    ends = [(y, min(row), max(row)) for y, row in known if row]
    if ends:
        axis.hlines(*zip(*ends, strict=True), color="0.7", linewidth=2, zorder=1)
    for y, row in known:
        if not row:
            axis.text(0, y, "no labelled pixel", fontsize=7, va="center", color="0.4")
    for run, column in enumerate(zip(*values, strict=True)):
        places = range(len(column))
        axis.plot(column, places, linestyle="", markersize=5, alpha=0.9, **series_style(run))


def draw_differences(axis: Axes, values: Sequence[Sequence[float]]) -> None:
    """One bar per class and run after the first."""
    from tagclip.visualization.class_charts import series_style

    axis.axvline(0, color="0.3", linewidth=0.8)
    height = 0.8 / (len(values[0]) - 1)
    for run in range(1, len(values[0])):
        lengths = [row[run] - row[0] for row in values]
        places = [y - 0.4 + (run - 0.5) * height for y in range(len(values))]
        axis.barh(places, lengths, height=height, color=series_style(run)["color"])


def _condition(result: RunResult, key: str) -> str:
    value = result.run(key)
    text = "" if value is None else str(value)
    return text[:8] if key == "git_commit" else text


def _percent(value: float, sign: str = "") -> str:
    return "n/a" if math.isnan(value) else f"{value:{sign}.2f}"


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
