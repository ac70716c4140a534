"""Command line of the prepare scripts."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagclip.errors import DatasetError
from tagclip.utils.cli import run_tool
from tagclip.utils.tool_parser import MOST_PROCESSES, NumberIn, ToolParser

__all__ = ["Options", "add_converted", "prepare_parser", "run_script"]


@dataclass(frozen=True)
class Options:
    """Command line of a prepare script.

    Attributes:
        root: folder of all datasets.
        datasets: names of the datasets to prepare.
        workers: processes.
        allow_missing: prepare what is there although the data are not complete; a dataset that
            cannot be prepared does not stop those behind it.
        overwrite: write all files anew.
        extra: values of the options that only this script has.
    """

    root: Path
    datasets: tuple[str, ...]
    workers: int
    allow_missing: bool
    overwrite: bool
    extra: argparse.Namespace


def prepare_parser(description: str, datasets: Sequence[str]) -> ToolParser:
    """Make the parser of a script.

    Args:
        description: its docstring, with an example.
        datasets: what it can prepare.
    """
    parser = ToolParser(description)
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        type=Path,
        default=Path(os.environ.get("DETECTRON2_DATASETS") or "datasets"),
        help="folder of all datasets (default: $DETECTRON2_DATASETS, else datasets)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=datasets,
        default=datasets,
        metavar="NAME",
        help=f"some of {', '.join(datasets)} (default: all)",
    )
    parser.add_argument(
        "--workers",
        type=NumberIn(int, 1, MOST_PROCESSES),
        default=os.cpu_count() or 1,
        help="processes (default: all cores)",
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="prepare what is there although images, labels or whole datasets are missing",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="write all files anew, also those of others"
    )
    return parser


def add_converted(parser: ToolParser, help: str, orders: Sequence[str]) -> None:
    """Add the options of labels that another converter wrote.

    Args:
        parser: of `prepare_parser`.
        help: what the folder holds.
        orders: names of class lists, the orders that are known.
    """
    parser.add_argument("--converted", metavar="FOLDER", type=Path, help=help)
    text = f"class order of --converted: {', '.join(orders)}"
    parser.add_argument("--order", choices=orders, default="", metavar="NAME", help=text)


def run_script(
    parser: ToolParser,
    prepare_dataset: Callable[[str, Options], None],
    argv: Sequence[str] | None,
) -> None:
    """Read the command line and prepare the datasets; exits with 1 and one line on failure.

    Args:
        parser: of `prepare_parser`, with the script's own options.
        prepare_dataset: called with the name of each.
        argv: command line; None takes that of the process.
    """
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_tool(_prepare_all, prepare_dataset, args)


def _prepare_all(
    prepare_dataset: Callable[[str, Options], None],
    args: argparse.Namespace,
) -> None:
    options = Options(
        args.root,
        tuple(args.only),
        args.workers,
        args.allow_missing,
        args.overwrite,
        args,
    )
    errors: dict[str, DatasetError] = {}
    try:
        for name in options.datasets:
            try:
                prepare_dataset(name, options)
            except DatasetError as error:
                if not options.allow_missing:
                    raise
                errors[name] = error
    except KeyboardInterrupt:
        print("\nRun the same command to go on", file=sys.stderr)
        raise
    except OSError as error:
        raise DatasetError(
            f"{error.filename or options.root}: {error.strerror or error}; mend it and run the "
            "same command to go on"
        ) from error
    if errors:
        done = ", ".join(name for name in options.datasets if name not in errors) or "none"
        first = next(iter(errors.values()))
        raise DatasetError(f"{first} (left out: {', '.join(errors)}; prepared: {done})") from first
