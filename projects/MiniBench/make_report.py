#!/usr/bin/env python
"""Draw what a run has learned: pictures and report.html in its folder.

tagclip minibench report output/minibench
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from tagclip.utils.cli import run_tool
from tagclip.utils.tool_parser import ToolParser

OUTPUT = Path("output/minibench")


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_argument(
        "run",
        metavar="RUN",
        nargs="?",
        type=Path,
        help=f"OUTPUT_DIR of the run (default: {OUTPUT})",
    )
    parser.add_argument("--run", dest="same", metavar="RUN", type=Path, help="the same")
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    parsed = parser.parse_args(args)
    if parsed.run and parsed.same and parsed.run != parsed.same:
        parser.error(f"expected one run, found {parsed.run} and --run {parsed.same}")
    parsed.run = parsed.same or parsed.run or OUTPUT
    return parsed


def invoke_main() -> None:
    """Parse the command line, write the report."""
    args = parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    run_tool(report, args.run)


def report(folder: Path) -> None:
    """Write the report; print the metrics and where everything lies."""
    from tabulate import tabulate

    from tagclip.evaluation.results import absent_note
    from tagclip.projects.minibench.report import metric_rows, write_report

    run, files = write_report(folder)
    print(f"Protocol: {run.result['run']['protocol']}")
    print(f"{run.dataset}, {run.result['images']} images")
    print(
        tabulate(metric_rows(run.result), ("metric", "percent", "classes"), disable_numparse=True)
    )
    if note := absent_note(run.result["metrics"]):
        print(note)
    for file in files:
        print(f"Written: {file}")


if __name__ == "__main__":
    invoke_main()
