#!/usr/bin/env python
"""Train and measure all runs of MiniBench's table; goes on where it was stopped.

tagclip minibench table --seeds 5 --workers 2

Below --output: table.md, curves.png, protocols.png, words.png, results.json,
and a json, a log and the checkpoints of every run. Results of an earlier
version, without figures that the table shows, are measured again, from the
checkpoints if they are there. With --docs those tables whose runs are all asked
for also replace the ones in projects/MiniBench/README.md, and summaries those
of docs/results.md and projects/TrainingFree/README.md.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tagclip.errors import OutputError
from tagclip.utils.cli import check_output, run_tool
from tagclip.utils.files import probe_folder, write_atomic
from tagclip.utils.parent import end_with_parent, ending_children, run_child
from tagclip.utils.run_lock import RunLock
from tagclip.utils.stopping import explained
from tagclip.utils.text import json_text, shortened
from tagclip.utils.tool_parser import MOST_PROCESSES, NumberIn, ToolParser

README = Path(__file__).with_name("README.md")
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results.md"
FREE_README = Path(__file__).resolve().parents[1] / "TrainingFree" / "README.md"

RunKey = tuple[str, str, int]

# Bytes of a short log: what has no room for it has none for a last line either.
_LOG_SIZE = 1 << 16

GOES_ON = "finished runs stay, the same command goes on with the others"


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("output/minibench_table"), help="folder"
    )
    parser.add_argument("--seeds", type=NumberIn(int, 1, 1000), default=5, help="of each run")
    parser.add_argument(
        "--workers",
        "--jobs",
        dest="jobs",
        type=NumberIn(int, 1, MOST_PROCESSES),
        default=2,
        help="processes, a run each",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        default=[],
        metavar="RUN",
        help="these alone, as its logs call them, and what they start from",
    )
    parser.add_argument("--docs", action="store_true", help="put the tables into the documents")
    parser.add_argument("--one", nargs=3, metavar=("SPLIT", "RUN", "SEED"), help="one run only")
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    parsed = parser.parse_args(args)
    if parsed.one:
        refuse_beside_one(parser, args, "runs", "seeds", "jobs", "docs")
    return parsed


def refuse_beside_one(parser: ToolParser, args: Sequence[str] | None, *names: str) -> None:
    """Refuse options, named by their attributes, that would do nothing beside --one.

    Raises:
        SystemExit: one is given.
    """
    if given := parser.given(args, *names):
        parser.error(f"--one does one run and no table: give it without {', '.join(given)}")


def run_key(split: str, *words: str) -> tuple[Any, ...]:
    """Read what --one names: a split, maybe a run, and a seed.

    Raises:
        SystemExit: there is no such one.
    """
    from tagclip.projects.minibench.table_runs import RUNS, SPLITS

    *names, seed = words
    for found, known in ((split, SPLITS), *((name, RUNS) for name in names)):
        if found not in known:
            sys.exit(f"--one: found {found!r}, expected one of {', '.join(known)}")
    if not (seed.isascii() and seed.isdecimal() and int(seed) < 2**31):
        sys.exit(f"--one: found the seed {seed!r}, expected 0 to {2**31 - 1}")
    return (split, *names, int(seed))


def result_file(output: Path, key: RunKey) -> Path:
    """Where the result of a run is kept."""
    from tagclip.projects.minibench.table_runs import run_folder

    return run_folder(output, *key).with_suffix(".json")


def check_places(files: Iterable[Path], folders: Iterable[Path]) -> None:
    """Refuse what stands where files and folders are to be.

    Raises:
        OutputError: a folder is in the place of a file, or a file in that of a folder.
    """
    for is_folder, paths in enumerate((files, folders)):
        number = errno.ENOTDIR if is_folder else errno.EISDIR
        for path in paths:
            if os.path.lexists(path) and path.is_dir() != is_folder:
                raise OutputError(number, os.strerror(number), str(path))


def check_runs(output: Path, keys: Sequence[RunKey]) -> None:
    """Refuse, before anything is trained, what stands where runs and the table are written.

    Raises:
        OutputError: a folder is in the place of a file, or a file in that of a folder.
    """
    from tagclip.projects.minibench.table_runs import run_folder

    results = [result_file(output, key) for key in keys]
    logs = [path.with_suffix(".log") for path in results]
    names = ("results.json", "table.md", "curves.png", "protocols.png", "words.png")
    tables = [output / name for name in names]
    check_places([*results, *logs, *tables], [run_folder(output, *key) for key in keys])


def is_outdated(output: Path, key: RunKey) -> bool:
    """Whether an earlier version wrote the result of a run, without figures of the table.

    Raises:
        ConfigError: the result is damaged.
    """
    from tagclip.projects.minibench.table_runs import missing_sections

    is_there = result_file(output, key).is_file()
    return is_there and bool(missing_sections(kept_result(output, key)))


def kept_result(output: Path, key: RunKey) -> dict[str, Any]:
    """Read the result of a run.

    Raises:
        ConfigError: it is damaged.
    """
    from tagclip.projects.minibench.table_runs import read_result

    split, run, seed = key
    return read_result(result_file(output, key), split=split, run=run, seed=seed)


def run_here(output: Path, key: RunKey) -> None:
    """Do one run in this process and write its result."""
    from tagclip.projects.minibench.table_runs import run_one

    result = run_one(*key, output)
    write_atomic(result_file(output, key), json_text(result, indent=1) + "\n")


def run_as_process(output: Path, key: RunKey) -> None:
    """Do one run in a process with one thread; its log lies beside its result."""
    words = [__file__, "--output", str(output), "--one", *map(str, key)]
    run_script(words, result_file(output, key).with_suffix(".log"))


def run_script(words: Sequence[str], path: Path) -> None:
    """Run a script in a process with one thread.

    Args:
        words: its file and arguments, ``--one`` and what it does at the end.
        path: of its log.

    Raises:
        SystemExit: it failed.
    """
    with path.open("w") as log:
        code = run_child([sys.executable, *words], log, {"OMP_NUM_THREADS": "1"})
    if code:
        what = " ".join(words[words.index("--one") + 1 :])
        sys.exit(f"{what}: exit code {code}{_cause(path)}; see {path}")


def _cause(path: Path) -> str:
    """Why a process has failed: the last line of its log, or what keeps it from having one."""
    try:
        probe_folder(path.parent, _LOG_SIZE)
    except OSError as error:
        return f", {path.parent} cannot be written ({error.strerror}): free space"
    lines = path.read_text(errors="replace").splitlines()
    return f" ({shortened(lines[-1], 300)})" if lines else ""


def be_script(job: Callable[..., None], *args: Any) -> None:
    """Be the process of `run_script`: do a job, and end when who started it does.

    Raises:
        SystemExit: the job is not done.
    """
    end_with_parent()
    try:
        job(*args)
    except SystemExit as error:
        # A training that a signal ends has saved, and ends with 0; here its run is not done.
        sys.exit(error.code or 128 + getattr(error, "number", signal.SIGTERM))


def run_scripts(job: Callable[[Any], None], keys: Sequence[Any], jobs: int) -> Iterator[None]:
    """Call a job that is `run_script` for every key, some at a time; yields after each.

    Raises:
        SystemExit: one has failed; those that run end first.
        KeyboardInterrupt: the process was stopped; those that run have saved and ended.
    """
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield from pool.map(job, keys)
        except BaseException as error:
            is_stopped = isinstance(error, (KeyboardInterrupt, GeneratorExit))
            with ending_children() if is_stopped else nullcontext():
                pool.shutdown(cancel_futures=True)
            raise


def wanted_runs(seeds: int, names: Sequence[str] = ()) -> list[RunKey]:
    """Runs of the table, all or those of some names; first those that they start from."""
    from tagclip.projects.minibench.table_runs import RUNS, SPLITS

    keys = [(split, name, seed) for seed in range(seeds) for split in SPLITS for name in RUNS]

    def is_asked(key: RunKey) -> bool:
        most = RUNS[key[1]].seeds
        return (most is None or key[2] < most) and key[1] in (names or RUNS)

    asked = set(filter(is_asked, keys))
    starts = {(split, RUNS[name].start, seed) for split, name, seed in asked}
    wanted = [key for key in keys if key in asked | starts]
    return sorted(wanted, key=lambda key: bool(RUNS[key[1]].start))


def write_table(output: Path, keys: list[RunKey], docs: bool) -> str:
    """Write tables, picture and figures of finished runs; return the tables."""
    from tagclip.projects.minibench.table import (
        PROTOCOL_RUNS,
        TABLE_RUNS,
        format_free_summary,
        format_protocols,
        format_summary,
        format_table,
    )
    from tagclip.projects.minibench.table_curves import STRICT, draw_curves
    from tagclip.visualization.class_charts import save_chart

    results = {key: kept_result(output, key) for key in keys}
    found, text = {name for _, name, _ in keys}, ""
    write_atomic(output / "results.json", json_text(list(results.values())) + "\n")
    if found & set(TABLE_RUNS):
        text = format_table(results)
        save_chart(draw_curves(results), output / "curves.png")
    if docs and found.issuperset(TABLE_RUNS):
        replace_table(README, text)
        replace_table(RESULTS, format_summary(results))
        for path, name in ((RESULTS, "training-free"), (FREE_README, "table")):
            replace_table(path, format_free_summary(results), name)
        put_picture(output / "curves.png")
    if found & set(PROTOCOL_RUNS):
        protocols = format_protocols(results)
        text += f"\n## Two protocols\n\n{protocols}"
        pictures = [output / "protocols.png", output / "words.png"]
        save_chart(draw_curves(results, STRICT), pictures[0])
        if not draw_words_of(output, pictures[1]):
            pictures.pop()
        if docs and found.issuperset(PROTOCOL_RUNS):
            replace_table(README, protocols, "protocols")
            for picture in pictures:
                put_picture(picture)
    write_atomic(output / "table.md", text)
    return text


def draw_words_of(output: Path, path: Path) -> bool:
    """Draw what BACKGROUND auto does, if the model is there whose pictures these are."""
    from detectron2.data import DatasetCatalog

    from tagclip import TagCLIPPredictor, Vocabulary
    from tagclip.projects.minibench.asked_alone import draw_words
    from tagclip.projects.minibench.table_runs import run_config
    from tagclip.visualization.panels import save_png

    split = "noun_dice_board"
    cfg = run_config(split, "relative without unseen images", 0, output)
    weights = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    if not weights.is_file():
        return False
    cfg.MODEL.WEIGHTS = str(weights)
    vocabulary = Vocabulary.from_metadata("minibench_test", split)
    samples = DatasetCatalog.get("minibench_test")[5::24]
    save_png(path, draw_words(TagCLIPPredictor(cfg), samples, vocabulary))
    return True


def put_picture(path: Path) -> None:
    """Copy a picture to those of the documents."""
    write_atomic(README.parent / "assets" / path.name, path.read_bytes())


def replace_table(path: Path, text: str, name: str = "table") -> None:
    """Put a table between the two marks of its name in a file."""
    begin, end = (f"<!-- {name}: {side} -->\n" for side in ("begin", "end"))
    before, rest = path.read_text(encoding="utf-8").split(begin)
    write_atomic(path, f"{before}{begin}{text}{end}{rest.split(end)[1]}")


def main(args: argparse.Namespace) -> None:
    """Run what is missing, then write the table.

    Raises:
        TagCLIPError: something cannot be written, a result is damaged, or another process works
            in the folder.
        SystemExit: the options do not fit together, or a run failed.
    """
    if args.docs and not RESULTS.is_file():
        sys.exit(
            f"--docs: found no {RESULTS}, expected a checkout's; run this there, or leave it out"
        )
    from tagclip.projects.minibench.table import PROTOCOL_RUNS, TABLE_RUNS
    from tagclip.projects.minibench.table_runs import RUNS

    tables = (set(TABLE_RUNS), set(PROTOCOL_RUNS))
    if args.docs and args.runs and not any(map(set(args.runs).issuperset, tables)):
        sys.exit(
            "--docs: found --runs of no whole table, expected none, or all of "
            f"{', '.join(PROTOCOL_RUNS)}"
        )
    check_output("--output", args.output, is_folder=True)
    if args.one:
        key = run_key(*args.one)
        check_runs(args.output, [key])
        be_script(run_here, args.output, key)
        return
    if unknown := set(args.runs) - RUNS.keys():
        sys.exit(f"--runs: found {', '.join(sorted(unknown))}, expected some of {', '.join(RUNS)}")
    with RunLock(args.output, "--output"):
        print(write_table(args.output, run_missing(args), args.docs))


def run_missing(args: argparse.Namespace) -> list[RunKey]:
    """Do the runs that have no result; return all that are asked for."""
    from tagclip.projects.minibench.table_runs import RUNS

    keys = wanted_runs(args.seeds, args.runs)
    check_runs(args.output, keys)
    outdated = [key for key in keys if is_outdated(args.output, key)]
    if outdated:
        print(
            f"{args.output}: found {len(outdated)} of {len(keys)} results without all figures of "
            "the table, written by an earlier version; these runs are measured again"
        )
    missing = [
        key for key in keys if key in outdated or not result_file(args.output, key).is_file()
    ]
    with tqdm(total=len(missing), desc="MiniBench table") as bar, explained(GOES_ON):
        for is_started in (False, True):
            part = [key for key in missing if bool(RUNS[key[1]].start) == is_started]
            for _ in run_scripts(lambda key: run_as_process(args.output, key), part, args.jobs):
                bar.update()
    return keys


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
