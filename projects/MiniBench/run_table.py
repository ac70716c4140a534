#!/usr/bin/env python
"""Train and measure MiniBench's whole table; an interrupted run continues where it stopped.

    python projects/MiniBench/run_table.py --seeds 5 --jobs 2

Writes table.md and one json per run below --output.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/minibench_table"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--one", nargs=3, metavar=("SPLIT", "VARIANT", "SEED"), help="one run only")
    return parser.parse_args()


def result_file(output: Path, split: str, variant: str, seed: int) -> Path:
    """Where the result of a run is kept."""
    return output / f"{split}-{variant.replace(' ', '_')}-{seed}.json"


def run_here(output: Path, split: str, variant: str, seed: int) -> None:
    """Do one run in this process and write its result."""
    from tagclip.projects.minibench.table import run_one

    path = result_file(output, split, variant, seed)
    result = run_one(split, variant, seed, output / path.stem)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, path)


def run_as_process(output: Path, split: str, variant: str, seed: int) -> None:
    """Do one run in a process with one thread; its log lies beside its result."""
    path = result_file(output, split, variant, seed)
    command = [sys.executable, __file__, "--output", str(output), "--one", split, variant]
    with path.with_suffix(".log").open("w") as log:
        subprocess.run(
            [*command, str(seed)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
        )


def main() -> None:
    """Run what is missing, then write the table."""
    args = parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.one:
        split, variant, seed = args.one
        run_here(args.output, split, variant, int(seed))
        return
    from tagclip.projects.minibench.table import SPLITS, SUPERVISED, VARIANTS, format_table

    runs = [
        (args.output, split, variant, seed)
        for seed in range(args.seeds)
        for split in (*SPLITS, SUPERVISED)
        for variant in (VARIANTS if split != SUPERVISED else ["no token"])
    ]
    missing = [run for run in runs if not result_file(*run).is_file()]
    with ThreadPoolExecutor(args.jobs) as pool:
        done = pool.map(lambda run: run_as_process(*run), missing)
        list(tqdm(done, total=len(missing), desc="MiniBench table"))
    results = [json.loads(result_file(*run).read_text()) for run in runs]
    text = format_table(results)
    (args.output / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
