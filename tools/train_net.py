#!/usr/bin/env python
"""Train or evaluate TagCLIP from a config.

tagclip train --config-file voc/tagclip_vitb16_voc_inductive_convtrust.yaml
tagclip train --config-file CONFIG --num-gpus 8 SOLVER.BASE_LR 0.001
tagclip train --config-file CONFIG --num-gpus 2 MODEL.DEVICE cpu
tagclip train --config-file CONFIG --prove-protocol 10
tagclip evaluate --config-file CONFIG --weights model_final.pth

docs/many_processes.md tells how to train on several machines.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tagclip.errors import ConfigError
from tagclip.projects import import_projects
from tagclip.utils.cli import hide_tracebacks, run_tool
from tagclip.utils.stopping import explained
from tagclip.utils.text import listed
from tagclip.utils.tool_parser import MOST_PROCESSES, NumberIn, ToolParser

# detectron2 is imported inside the functions: --help answers at once.
if TYPE_CHECKING:
    from detectron2.config import CfgNode


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_config_file()
    parser.add_weights("where to start", "MODEL.WEIGHTS")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in OUTPUT_DIR, if there is one",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="train even if OUTPUT_DIR holds the finished run of another config; removes the "
        "checkpoints, logs and results of the runs there, no other file",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument(
        "--prove-protocol",
        type=int,
        metavar="N",
        help="instead of a run, train N iterations repeatedly, with labels of unseen classes "
        "scrambled and with their names replaced, and compare all weights; writes nothing",
    )
    add_process_options(parser)
    parser.add_config_keys()
    return parser


def add_process_options(parser: ToolParser) -> None:
    """Add the options that say how many processes there are, and where they meet."""
    count, rank = NumberIn(int, 1, MOST_PROCESSES), NumberIn(int, 0, MOST_PROCESSES - 1)
    parser.add_argument("--num-gpus", type=count, default=1, help="GPUs per machine")
    parser.add_argument("--num-machines", type=count, default=1, help="with as many GPUs each")
    parser.add_argument(
        "--machine-rank", type=rank, default=0, help="number of this machine, from 0"
    )
    port = 2**15 + 2**14 + os.getuid() % 2**14 if hasattr(os, "getuid") else 2**15
    parser.add_argument(
        "--dist-url",
        metavar="URL",
        default=f"tcp://127.0.0.1:{port}",
        help="where several processes meet: address of machine 0 and a free port",
    )


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line: detectron2's ``default_argument_parser`` and a proof."""
    parser = make_parser()
    args = fold_weights(parser.parse_args(args))
    is_one = args.num_gpus == 1 and args.num_machines == 1 and not args.eval_only
    if args.prove_protocol is not None and (args.resume or not is_one):
        parser.error("--prove-protocol is one new training in one process: give no other option")
    if args.eval_only:
        refuse_two_models(parser, args)
    if args.overwrite and (args.resume or args.eval_only or args.prove_protocol is not None):
        parser.error("--overwrite begins a new training: give it without the other options")
    return args


def refuse_two_models(parser: ToolParser, args: argparse.Namespace) -> None:
    """Refuse to evaluate weights that are named and the last checkpoint of OUTPUT_DIR at once.

    Args:
        parser: of the command line.
        args: with ``--weights`` as a config key, see `fold_weights`.
    """
    if args.resume and "MODEL.WEIGHTS" in args.opts[::2]:
        parser.error(
            "--resume evaluates the last checkpoint in OUTPUT_DIR, not --weights: give one of them"
        )


def fold_weights(args: argparse.Namespace) -> argparse.Namespace:
    """Make ``--weights`` the config key that it stands for."""
    if args.weights is not None:
        args.opts = ["MODEL.WEIGHTS", args.weights, *args.opts]
    del args.weights
    return args


def read_config(args: argparse.Namespace, *, overwrite: bool) -> tuple[CfgNode, bool]:
    """Build the config and check all that it names.

    Args:
        args: see `parse_args`.
        overwrite: whether OUTPUT_DIR may hold another finished run.

    Returns:
        The config, and whether it asks for a GPU that is not there.
    """
    from tagclip import ZeroShotTrainer, load_config
    from tagclip.config import available_device
    from tagclip.engine import resolve_weights_and_seed
    from tagclip.modeling.clip import resolve_pixels

    cfg = resolve_pixels(load_config(args.config_file, args.opts))
    import_projects(cfg.PROJECTS)
    wanted, cfg.MODEL.DEVICE = cfg.MODEL.DEVICE, available_device(cfg.MODEL.DEVICE)
    weights = resolve_weights_and_seed(cfg, eval_only=args.eval_only, resume=args.resume)
    ZeroShotTrainer.check(cfg, weights=weights, train=not args.eval_only, overwrite=overwrite)
    cfg.freeze()
    return cfg, wanted != cfg.MODEL.DEVICE


def setup(args: argparse.Namespace, cfg: CfgNode, no_gpu: bool) -> None:
    """Prepare OUTPUT_DIR and begin its log.

    Args:
        args: see `parse_args`.
        cfg, no_gpu: see `read_config`.

    Raises:
        ConfigError: OUTPUT_DIR cannot be written, or its run cannot be removed.
    """
    from tagclip.config import unread_keys
    from tagclip.engine.finished_run import remove_run
    from tagclip.engine.output_dir import begin_log

    if args.overwrite:
        remove_run(cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS)
    try:
        begin_log(cfg, args)
    # A zero byte is a ValueError.
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR}: found no folder to write to ({reason}), expected one; "
            "name another"
        ) from error
    hide_tracebacks()
    logger = logging.getLogger("tagclip")
    logger.info("Device: %s%s", cfg.MODEL.DEVICE, " (found no GPU)" if no_gpu else "")
    logger.info("Seed: %d", cfg.SEED)
    if unread := unread_keys(cfg):
        logger.warning(
            "No part of TagCLIP reads %s: leave them out. Classes, and what is ignored in labels, "
            "are in the vocabulary json", listed(unread, 6),
        )  # fmt: skip


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Train, or evaluate with --eval-only; return the results."""
    from tagclip import ZeroShotTrainer
    from tagclip.engine.output_dir import check_config_place, save_config
    from tagclip.engine.own_folder import own_folder

    # All that the config names is checked before anything is written.
    cfg, no_gpu = read_config(args, overwrite=args.resume or args.overwrite)
    with own_folder(cfg.OUTPUT_DIR):
        check_config_place(cfg, args.eval_only)
        setup(args, cfg, no_gpu)
        if args.eval_only:
            return evaluate(cfg)
        trainer = ZeroShotTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        # Now that nothing refuses it.
        save_config(cfg)
        return trainer.train()


def evaluate(cfg: CfgNode) -> dict[str, Any]:
    """Evaluate MODEL.WEIGHTS on all datasets; return the results."""
    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

    from tagclip import ZeroShotTrainer
    from tagclip.checkpoint import load_trained
    from tagclip.engine.output_dir import save_config
    from tagclip.engine.run_info import announce_protocol

    model = load_trained(cfg, model=ZeroShotTrainer.build_model(cfg))
    announce_protocol(cfg, model)
    save_config(cfg, is_evaluation=True)
    there = "results.csv has a row of each dataset that is finished; the same command evaluates all"
    with explained(f"OUTPUT_DIR {cfg.OUTPUT_DIR}: {there}"):
        results = ZeroShotTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def invoke_main() -> None:
    """Parse the command line and start the processes."""
    args = parse_args()
    run_tool(start if args.prove_protocol is None else prove, args)


def prove(args: argparse.Namespace) -> None:
    """Show that this training depends on nothing that its protocol hides; print the figures."""
    from tagclip.engine.protocol_proof import prove_protocol

    proof = prove_protocol(read_config(args, overwrite=True)[0], args.prove_protocol)
    print(proof.report())
    print(proof.conclusion())


def start(args: argparse.Namespace) -> None:
    """Run `main` in this process, or in one process per GPU (MODEL.DEVICE cpu: on the CPU)."""
    from tagclip import load_config
    from tagclip.config import find_config
    from tagclip.engine.launch import launch

    if args.config_file:
        # detectron2 opens it as well.
        args.config_file = str(find_config(args.config_file))
    launch(main, args, load_config(args.config_file, args.opts).MODEL.DEVICE)


if __name__ == "__main__":
    invoke_main()
