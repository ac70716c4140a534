#!/usr/bin/env python
"""Measure what else could tell unseen pixels, without images of unseen objects.

tagclip minibench novelty --seeds 5 --workers 2

Runs of tagclip minibench table in --output are taken, missing ones are trained;
goes on where it was stopped. Below --output: novelty-test.md or novelty-val.md,
and a json and a log of every run. With --docs the table of test also replaces
that in projects/MiniBench/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tagclip.utils.cli import check_output, run_tool
from tagclip.utils.files import write_atomic
from tagclip.utils.run_lock import RunLock
from tagclip.utils.stopping import explained
from tagclip.utils.text import json_text
from tagclip.utils.tool_parser import MOST_PROCESSES, NumberIn, ToolParser

# Split and seed of a run.
RunKey = tuple[str, int]


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("output/minibench_table"), help="folder"
    )
    parser.add_argument(
        "--subset", choices=("val", "test"), default="test", help="images to measure on"
    )
    parser.add_argument("--seeds", type=NumberIn(int, 1, 1000), default=5, help="of each split")
    parser.add_argument(
        "--first-seed", type=NumberIn(int, 0, 2**31), default=0, help="the others follow it"
    )
    parser.add_argument(
        "--workers",
        "--jobs",
        dest="jobs",
        type=NumberIn(int, 1, MOST_PROCESSES),
        default=2,
        help="processes, a run each",
    )
    parser.add_argument("--docs", action="store_true", help="put the table into the documents")
    parser.add_argument("--one", nargs=2, metavar=("SPLIT", "SEED"), help="one run only")
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    parsed = parser.parse_args(args)
    if parsed.one:
        from tagclip.tools.minibench.run_table import refuse_beside_one

        refuse_beside_one(parser, args, "seeds", "first_seed", "jobs", "docs")
    return parsed


def run_here(output: Path, subset: str, key: RunKey) -> None:
    """Do one run in this process and write its result."""
    from tagclip.projects.minibench.novelty import measure, novelty_file

    result = measure(*key, subset, output)
    write_atomic(novelty_file(output, *key, subset), json_text(result, indent=1) + "\n")


def run_as_process(output: Path, subset: str, key: RunKey) -> None:
    """Do one run in a process with one thread; its log lies beside its result."""
    from tagclip.projects.minibench.novelty import novelty_file
    from tagclip.tools.minibench.run_table import run_script

    words = [__file__, "--output", str(output), "--subset", subset, "--one", *map(str, key)]
    run_script(words, novelty_file(output, *key, subset).with_suffix(".log"))


def kept_result(output: Path, subset: str, key: RunKey) -> dict[str, Any]:
    """Read the result of a run.

    Raises:
        ConfigError: it is damaged.
    """
    from tagclip.projects.minibench.novelty import novelty_file
    from tagclip.projects.minibench.table_runs import read_result

    path, (split, seed) = novelty_file(output, *key, subset), key
    return read_result(path, split=split, seed=seed, subset=subset)


def write_table(output: Path, subset: str, keys: list[RunKey], docs: bool) -> str:
    """Write the table of finished runs; return it."""
    from tagclip.projects.minibench.novelty_table import format_novelty
    from tagclip.tools.minibench.run_table import README, replace_table

    results = [kept_result(output, subset, key) for key in keys]
    text = format_novelty(results)
    write_atomic(output / f"novelty-{subset}.md", text)
    if docs:
        replace_table(README, text, "novelty")
    return text


def main(args: argparse.Namespace) -> None:
    """Run what is missing, then write the table.

    Raises:
        TagCLIPError: something cannot be written, a result is damaged, or another process works
            in the folder, maybe tagclip minibench table.
        SystemExit: the options do not fit together, or a run failed.
    """
    if args.docs and args.subset != "test":
        sys.exit(f"--docs: found --subset {args.subset}, expected test, which the documents show")
    from tagclip.tools.minibench.run_table import README, be_script, run_key

    if args.docs and not README.is_file():
        sys.exit(
            f"--docs: found no {README}, expected a checkout's; run this there, or leave it out"
        )
    check_output("--output", args.output, is_folder=True)
    if args.one:
        key = run_key(*args.one)
        check_runs(args, [key])
        be_script(run_here, args.output, args.subset, key)
        return
    with RunLock(args.output, "--output"):
        print(write_table(args.output, args.subset, run_missing(args), args.docs))


def check_runs(args: argparse.Namespace, keys: Sequence[RunKey]) -> None:
    """Refuse, before anything is trained, what stands where runs and the table are written.

    Raises:
        OutputError: a folder is in the place of a file, or a file in that of a folder.
    """
    from tagclip.projects.minibench.novelty import RUN, novelty_file
    from tagclip.projects.minibench.table_runs import run_folder
    from tagclip.tools.minibench.run_table import check_places

    results = [novelty_file(args.output, *key, args.subset) for key in keys]
    logs = [path.with_suffix(".log") for path in results]
    check_places(
        [*results, *logs, args.output / f"novelty-{args.subset}.md"],
        [run_folder(args.output, split, RUN, seed) for split, seed in keys],
    )


def run_missing(args: argparse.Namespace) -> list[RunKey]:
    """Do the runs that have no result; return all that are asked for."""
    from tagclip.projects.minibench.novelty import novelty_file
    from tagclip.projects.minibench.table_runs import SPLITS
    from tagclip.tools.minibench.run_table import GOES_ON, run_scripts

    seeds = range(args.first_seed, args.first_seed + args.seeds)
    keys = [(split, seed) for seed in seeds for split in SPLITS]
    check_runs(args, keys)
    missing = [key for key in keys if not novelty_file(args.output, *key, args.subset).is_file()]
    # A damaged one is found before the others are done.
    for key in keys:
        if key not in missing:
            kept_result(args.output, args.subset, key)
    with tqdm(total=len(missing), desc="MiniBench novelty") as bar, explained(GOES_ON):
        for _ in run_scripts(
            lambda key: run_as_process(args.output, args.subset, key), missing, args.jobs
        ):
            bar.update()
    return keys


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
