#!/usr/bin/env python
"""Generate MiniBench's images and labels (a few seconds).

python projects/MiniBench/generate_data.py
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from tagclip.utils.cli import run_tool


def invoke_main() -> None:
    """Write the data to --root."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", type=Path, help="folder of the data (default: $DETECTRON2_DATASETS/minibench)"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_tool(write, args.root)


def write(root: Path | None) -> None:
    """Write the data; None: where the datasets are registered."""
    from tagclip.projects.minibench import dataset_root
    from tagclip.projects.minibench.generate import generate

    generate(root or dataset_root())


if __name__ == "__main__":
    invoke_main()
