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

__all__ = ["Options", "run_script"]


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


def run_script(
    description: str,
    datasets: Sequence[str],
    prepare_dataset: Callable[[str, Options], None],
    argv: Sequence[str] | None = None,
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """Read the command line and prepare the datasets; exits with 1 and one line on failure.

    Args:
        description: docstring of the script, with an example.
        datasets: what the script can prepare.
        prepare_dataset: called with the name of each.
        argv: command line; None takes that of the process.
        add_options: adds the script's own options.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("DETECTRON2_DATASETS") or "datasets"),
        help="folder of all datasets (default: $DETECTRON2_DATASETS, else datasets)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=datasets, metavar="NAME", help=f"some of {', '.join(datasets)}"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="prepare what is there although images, labels or whole datasets are missing",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="write all files anew, also those of others"
    )
    if add_options:
        add_options(parser)
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error(f"--workers is {args.workers}, expected 1 or more")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_tool(_prepare_all, prepare_dataset, datasets, args)


def _prepare_all(
    prepare_dataset: Callable[[str, Options], None],
    datasets: Sequence[str],
    args: argparse.Namespace,
) -> None:
    options = Options(
        args.root,
        tuple(args.only or datasets),
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
