#!/usr/bin/env python
"""Generate MiniBench's images and labels (a few seconds).

tagclip minibench data
"""

from __future__ import annotations

import logging
from pathlib import Path

from tagclip.utils.cli import run_tool
from tagclip.utils.tool_parser import ToolParser


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        type=Path,
        help="folder of the data (default: $DETECTRON2_DATASETS/minibench)",
    )
    return parser


def invoke_main() -> None:
    """Write the data to --root."""
    args = make_parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_tool(write, args.root)


def write(root: Path | None) -> None:
    """Write the data; None: where the datasets are registered."""
    from tagclip.projects.minibench import dataset_root
    from tagclip.projects.minibench.generate import generate

    generate(root or dataset_root())


if __name__ == "__main__":
    invoke_main()
