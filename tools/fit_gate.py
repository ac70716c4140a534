#!/usr/bin/env python
r"""Fit the additive gate on seen classes that are held out, a group at a time.

tagclip fit-gate --dataset minibench_val --hold-out ball --hold-out flag \
    --config-file minibench/tagclip_minibench_noun_dice_board_convtrust.yaml

For every --hold-out (names of seen classes or words of their names, separated
by commas) a model is trained as if these classes were unseen, too, and asked on
--dataset, which has to show some of each group and of the others; the run's own
unseen classes take no part. Writes gate.json below --output and prints the keys
to evaluate with. Hold out what is as new as the unseen classes: a whole noun at
a time where whole nouns are unseen. The same command goes on with models that
it has trained; it refuses those of another config or of other labels.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from tagclip.projects import import_projects
from tagclip.utils.cli import check_output, run_tool
from tagclip.utils.files import make_folder, write_atomic
from tagclip.utils.run_lock import RunLock
from tagclip.utils.stopping import explained
from tagclip.utils.text import json_text
from tagclip.utils.tool_parser import ToolParser

# Keys that it sets itself, of the gate that it fits among others, or that ask for an evaluation.
UNREAD = (
    *("OUTPUT_DIR", "MODEL.WEIGHTS", "TEST.EVAL_PERIOD", "TEST.EXPECTED_RESULTS"),
    *("TEST.SAVE_PREDICTIONS", "TEST.SAVE_LOGITS"),
    *(f"MODEL.TAGCLIP.TEST.{key}" for key in ("GATE", "GATE_FORM", "GATE_SCALE", "SEEN_BIAS")),
    "MODEL.TAGCLIP.TEST.BIAS_AFTER_GATE",
)
GOES_ON = "what is trained is saved, the same command goes on with the rest"


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_config_file(required=True)
    parser.add_argument(
        "--hold-out", required=True, action="append", metavar="WORDS", help="once per model"
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        required=True,
        help="registered images with labels to fit on, of neither training nor test set",
    )
    parser.add_argument("--output", type=Path, default=Path("output/fit_gate"), help="folder")
    parser.add_config_keys(unread=UNREAD)
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    return make_parser().parse_args(args)


def main(args: argparse.Namespace) -> None:
    """Train the held-out models, fit, write and print."""
    import torch
    from detectron2.utils.logger import setup_logger

    from tagclip import load_config
    from tagclip.analysis.gate_fitting import (
        announce_known_images,
        best_constants,
        held_out_classes,
        held_out_curves,
        refuse_unshown,
        to_json,
        training_contents,
    )
    from tagclip.data import Protocol
    from tagclip.engine.interruptions import part_of_more
    from tagclip.errors import ConfigError

    check_output("--output", args.output, is_folder=True)
    cfg = load_config(args.config_file, args.opts)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    import_projects(cfg.PROJECTS)
    if args.dataset in cfg.DATASETS.TEST:
        raise ConfigError(
            f"--dataset {args.dataset}: found the test set of {args.config_file}, expected "
            "other images: what is fitted on it makes its result too good; name another, or other "
            "DATASETS.TEST"
        )
    vocabulary = Protocol(cfg).full
    groups = [held_out_classes(vocabulary, words) for words in args.hold_out]
    twice = next((names for names in groups if sum(set(names) == set(g) for g in groups) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"--hold-out: found {', '.join(twice)} more than once, expected other classes each "
            "time; a curve would count twice: leave one out"
        )
    with RunLock(args.output, "--output"):
        setup_logger(str(args.output))
        setup_logger(str(args.output), name="tagclip")
        announce_known_images(cfg, args.dataset)
        refuse_unshown(cfg, args.dataset, groups)
        curves, contents = [], training_contents(cfg)
        with explained(GOES_ON):
            for index, names in enumerate(groups):
                folder = make_folder(args.output / f"held_out_{index}")
                logging.getLogger("tagclip").info("Held out: %s", ", ".join(names))
                with part_of_more():
                    curves.append(held_out_curves(cfg, args.dataset, names, folder, contents))
        constants = best_constants(curves)
        if constants.hiou == 0:
            raise ConfigError(
                f"{args.output}: found hIoU 0 on {args.dataset} with every scale and bias, "
                "expected models that find held-out and other seen classes; fit with more images, "
                "more iterations (SOLVER.MAX_ITER) or other --hold-out, and another --output"
            )
        found = to_json(constants, groups)
        write_atomic(args.output / "gate.json", json_text(found, indent=1) + "\n")
    print(
        f"Held-out hIoU {found['hIoU']:.1f}. Evaluate with MODEL.TAGCLIP.TEST.GATE_FORM additive "
        f"MODEL.TAGCLIP.TEST.GATE_SCALE {found['GATE_SCALE']} "
        f"MODEL.TAGCLIP.TEST.SEEN_BIAS {found['SEEN_BIAS']}"
    )


def invoke_main() -> None:
    """Parse the command line and run."""
    args = parse_args()
    run_tool(main, args)


if __name__ == "__main__":
    invoke_main()
