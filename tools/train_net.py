#!/usr/bin/env python
"""Train or evaluate TagCLIP from a config.

python tools/train_net.py --config-file projects/MiniBench/configs/tagclip_composition.yaml
python tools/train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS model_final.pth
"""

from __future__ import annotations

import argparse
import logging
import secrets
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch


def setup(args: argparse.Namespace) -> CfgNode:
    """Build the config and check what it names before anything is written."""
    import torch
    from detectron2.data import DatasetCatalog
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    from tagclip import load_config
    from tagclip.data import validate_protocol
    from tagclip.engine import read_checkpoint
    from tagclip.modeling.backbone import CLIPSource
    from tagclip.projects import import_projects

    cfg = load_config(args.config_file, args.opts)
    import_projects(cfg.PROJECTS)
    no_gpu = cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available()
    if no_gpu:
        cfg.MODEL.DEVICE = "cpu"
    if cfg.SEED < 0:
        cfg.SEED = secrets.randbelow(2**31)
    validate_protocol(cfg)
    CLIPSource.from_config(cfg).state_dict()
    if args.eval_only and not args.resume:
        read_checkpoint(cfg.MODEL.WEIGHTS)
    for name in cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN + cfg.DATASETS.TEST:
        DatasetCatalog.get(name)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="tagclip")
    if no_gpu:
        logging.getLogger("tagclip").info("No GPU found: running on the CPU")
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
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = ZeroShotTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def invoke_main() -> None:
    """Parse the command line and start the processes."""
    args = default_argument_parser(epilog=__doc__).parse_args()
    from tagclip.utils.cli import check_gpus, run_tool

    run_tool(check_gpus, args.num_gpus)
    run_tool(
        launch,
        main,
        args.num_gpus,
        args.num_machines,
        args.machine_rank,
        args.dist_url,
        (args,),
    )


if __name__ == "__main__":
    invoke_main()
