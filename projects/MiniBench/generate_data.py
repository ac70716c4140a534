#!/usr/bin/env python
"""Generate MiniBench's images and labels (a few seconds).

python projects/MiniBench/generate_data.py
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path


def main() -> None:
    """Write the data to --root."""
    from tagclip.projects.minibench import dataset_root
    from tagclip.projects.minibench.generate import generate
    from tagclip.utils.cli import run_tool

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=dataset_root(),
        help="folder of the data (default: $DETECTRON2_DATASETS/minibench)",
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_tool(generate, args.root)


if __name__ == "__main__":
    main()
