#!/usr/bin/env python
"""Train or evaluate TagCLIP from a config.

python tools/train_net.py --config-file projects/MiniBench/configs/tagclip_noun_fence_board.yaml
python tools/train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS model_final.pth
python tools/train_net.py --config-file CONFIG --num-gpus 8 SOLVER.BASE_LR 0.001 OUTPUT_DIR out
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# detectron2 is imported inside the functions: --help answers at once.
# What no user can mend should not stand around an error's one line: detectron2's imports make
# torch warn about torch.jit.script, and its environment report that nvcc is there without a GPU.
warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def parse_args() -> argparse.Namespace:
    """Read the command line: the options of detectron2's ``default_argument_parser``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="yaml config")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in OUTPUT_DIR, if there is one",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs per machine")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument(
        "--machine-rank", type=int, default=0, help="number of this machine, from 0"
    )
    port = 2**15 + 2**14 + os.getuid() % 2**14 if hasattr(os, "getuid") else 2**15
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="where several processes meet: address of machine 0 and a free port",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys to override, at the end of the command line",
    )
    return parser.parse_args()


def setup(args: argparse.Namespace) -> CfgNode:
    """Build the config and check all that it names before anything is written."""
    import torch
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    from tagclip import ZeroShotTrainer, load_config
    from tagclip.engine import resolve_weights_and_seed
    from tagclip.errors import ConfigError
    from tagclip.projects import import_projects
    from tagclip.utils.cli import hide_tracebacks

    cfg = load_config(args.config_file, args.opts)
    import_projects(cfg.PROJECTS)
    no_gpu = cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available()
    if no_gpu:
        cfg.MODEL.DEVICE = "cpu"
    weights = resolve_weights_and_seed(cfg, eval_only=args.eval_only, resume=args.resume)
    ZeroShotTrainer.check(cfg, weights=weights, train=not args.eval_only)
    cfg.freeze()
    try:
        default_setup(cfg, args)
    except OSError as error:
        raise ConfigError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR}: found no folder to write to ({error.strerror}), "
            "expected one; name another"
        ) from error
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="tagclip")
    hide_tracebacks()
    logger = logging.getLogger("tagclip")
    logger.info("Device: %s%s", cfg.MODEL.DEVICE, " (found no GPU)" if no_gpu else "")
    logger.info("Seed: %d", cfg.SEED)
    return cfg


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Train, or evaluate with --eval-only; return the results."""
    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

    from tagclip import TagCLIPCheckpointer, ZeroShotTrainer
    from tagclip.data import protocol_summary
    from tagclip.engine import checkpoint_metadata

    cfg = setup(args)
    if not args.eval_only:
        trainer = ZeroShotTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    logging.getLogger("tagclip").info("Protocol: %s", protocol_summary(cfg))
    model = ZeroShotTrainer.build_model(cfg)
    checkpointer = TagCLIPCheckpointer(
        model,
        cfg.OUTPUT_DIR,
        metadata=checkpoint_metadata(cfg, model),
        allow_partial=cfg.TEST.ALLOW_PARTIAL_WEIGHTS,
    )
    checkpointer.load(cfg.MODEL.WEIGHTS)
    results = ZeroShotTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def invoke_main() -> None:
    """Parse the command line and start the processes."""
    args = parse_args()
    from tagclip.utils.cli import run_tool

    run_tool(start, args)


def start(args: argparse.Namespace) -> None:
    """Run `main` in this process, or in one process per GPU."""
    from detectron2.engine import launch

    from tagclip.utils.cli import check_processes, forward_sigterm

    check_processes(args.num_gpus, args.num_machines, args.machine_rank)
    if args.num_gpus * args.num_machines > 1:
        forward_sigterm()
    launch(
        main,
        args.num_gpus,
        args.num_machines,
        args.machine_rank,
        args.dist_url,
        (args,),
    )


if __name__ == "__main__":
    invoke_main()
