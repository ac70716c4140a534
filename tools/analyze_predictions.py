#!/usr/bin/env python
"""Say what the trusty map adds, and what it could, from the saved logits of runs.

tagclip evaluate --config-file CONFIG --weights FILE \\
    OUTPUT_DIR output/run_a TEST.SAVE_LOGITS True
tagclip analyze output/run_a output/run_b

No model runs again. Writes below --output, for each dataset and run:
report.html (seen-unseen curve over the seen bias, AUSUC, best hIoU, oracle
gate, AUROC, AUPR and FPR at 95 % TPR of what tells unseen pixels,
calibration of the trusty map, confused classes, images; with BACKGROUND auto
what it rejects), its pictures, analysis.json and csv tables. Several runs also
get comparison.html, .json and .csv, with differences to the first run; the
analyzed dataset has to be the same in all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tagclip.utils.cli import run_tool
from tagclip.utils.run_lock import RunLock
from tagclip.utils.tool_parser import NumberIn, ToolParser

# detectron2 is imported inside the functions: --help answers at once.
if TYPE_CHECKING:
    from tagclip.analysis.run_analysis import AnalyzedRun


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="OUTPUT_DIR of an evaluated run")
    parser.add_argument(
        "--runs", nargs="+", default=[], dest="more_runs", metavar="RUN", help="the same"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", default="", help="only this one (default: all in common)"
    )
    parser.add_argument("--output", type=Path, default=Path("output/analysis"), help="folder")
    parser.add_argument("--num", type=NumberIn(int, 1, 1000000), default=4, help="images to draw")
    parser.add_argument(
        "--device", default="", metavar="NAME", help="cuda or cpu (default: cuda if there is one)"
    )
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    parsed = parser.parse_args(args)
    parsed.runs += parsed.more_runs
    if not parsed.runs:
        parser.error("expected a run")
    return parsed


def main(args: argparse.Namespace) -> None:
    """Analyze on every dataset.

    Raises:
        TagCLIPError: this machine has not the device, a folder holds no evaluated run, its parts do
            not belong together, its classes are all seen, logits were not saved, or runs mean other
            data by the name of the analyzed dataset.
    """
    import torch
    from tqdm import tqdm

    from tagclip.analysis.comparison import differences, load_results
    from tagclip.analysis.report import write_comparison, write_run
    from tagclip.analysis.run_analysis import analyze_run, analyzed_vocabulary, refuse_other_data
    from tagclip.config import check_device
    from tagclip.data.datasets.register import datasets_of, registered_parts
    from tagclip.evaluation.run_folder import run_config

    if args.device:
        check_device(args.device, "--device")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    results = load_results(args.runs, args.dataset)
    configs = {name: [run_config(Path(run), name) for run in args.runs] for name in results}
    for dataset in results:
        parts = []
        for run, cfg in zip(args.runs, configs[dataset], strict=True):
            with datasets_of(cfg):
                analyzed_vocabulary(Path(run), cfg, dataset)
                parts.append(registered_parts(dataset))
        refuse_other_data(args.runs, parts, dataset)
    with RunLock(args.output, "--output"):
        for dataset, found in results.items():
            runs = []
            for folder, cfg, result in zip(args.runs, configs[dataset], found, strict=True):
                progress = partial(
                    tqdm, desc=f"{result.label} on {dataset}", unit="image", disable=None
                )
                about = (result.content, result.label, device, progress)
                with datasets_of(cfg):
                    run = analyze_run(Path(folder), cfg, *about)
                    path = write_run(run, args.output / dataset / run.label, args.num)
                print(f"Written: {path}")
                print(f"{run.label}: {run.verdict}")
                runs.append(run)
            if len(runs) > 1:
                warned = differences(found)
                print(f"Written: {write_comparison(runs, warned, args.output / dataset)}")
                print("".join(f"Warning: {text}\n" for text in warned), end="")
            print_figures(runs)


def print_figures(runs: Sequence[AnalyzedRun]) -> None:
    """Print the table of all figures."""
    from tabulate import tabulate

    from tagclip.analysis.figure_tables import comparison_rows

    rows = comparison_rows([run.analysis.figures() for run in runs])
    head = ("", "", *(run.label for run in runs))
    print(
        tabulate(
            rows, head, disable_numparse=True, colalign=("left", "left", *["right"] * len(runs))
        )
    )


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
