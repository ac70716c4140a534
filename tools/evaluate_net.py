#!/usr/bin/env python
"""Evaluate a trained model on DATASETS.TEST of a config.

tagclip evaluate --config-file CONFIG --weights model_final.pth
tagclip evaluate --config-file CONFIG TEST.SAVE_PREDICTIONS png
tagclip evaluate --config-file CONFIG --num-gpus 8 TEST.AUG.ENABLED True

The same as train --eval-only. Writes below OUTPUT_DIR: metrics.json and
per_class.csv in inference/DATASET/, and a row of results.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tagclip.tools import train_net
from tagclip.utils.cli import run_tool
from tagclip.utils.tool_parser import ToolParser


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_config_file()
    parser.add_weights("what is evaluated", "MODEL.WEIGHTS")
    parser.add_argument(
        "--resume", action="store_true", help="evaluate the last checkpoint in OUTPUT_DIR"
    )
    train_net.add_process_options(parser)
    parser.add_config_keys()
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; what `train_net.parse_args` returns for --eval-only."""
    parser = make_parser()
    parsed = train_net.fold_weights(parser.parse_args(args))
    train_net.refuse_two_models(parser, parsed)
    return argparse.Namespace(**vars(train_net.parse_args(["--eval-only"])) | vars(parsed))


def invoke_main() -> None:
    """Parse the command line and start the processes."""
    run_tool(train_net.start, parse_args())


if __name__ == "__main__":
    invoke_main()
