"""What a run writes to OUTPUT_DIR before it begins: the head of its log, and config.yaml.

detectron2's ``default_setup`` does both at once: an evaluation would replace the config of the
training in its folder, and so would a training that is refused a line later.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from tagclip.checkpoint.pretrained_folder import DESCRIPTION
from tagclip.checkpoint.reading import LAST
from tagclip.errors import ConfigError
from tagclip.evaluation.results import CONFIG
from tagclip.utils.files import probe_folder, write_atomic
from tagclip.utils.untrusted import load_yaml

__all__ = ["begin_log", "check_config_place", "save_config"]

# Keys of detectron2 that are in the config of every run, and by hand nobody writes all of them.
_SELDOM_WRITTEN = {"CUDNN_BENCHMARK", "GLOBAL", "VERSION", "VIS_PERIOD"}


def check_config_place(cfg: CfgNode, is_evaluation: bool) -> None:
    """Refuse an OUTPUT_DIR whose ``config.yaml`` would be replaced although no run wrote it.

    Raises:
        ConfigError: it is that of a model of ``tagclip publish``, or was written by hand.
    """
    folder = Path(cfg.OUTPUT_DIR)
    path = folder / CONFIG
    # No folder at all: what is written there first says so.
    with suppress(OSError, ValueError):
        if not cfg.OUTPUT_DIR or not path.is_file() or (is_evaluation and _stays(folder)):
            return
        if (folder / DESCRIPTION).is_file():
            raise ConfigError(
                f"OUTPUT_DIR {folder}: found a model of tagclip publish, whose config.yaml would "
                "be replaced, expected the folder of a run; name another OUTPUT_DIR"
            )
        if not _is_of_run(path):
            raise ConfigError(
                f"OUTPUT_DIR {folder}: found a config.yaml that no run wrote, which the config of "
                "this run would replace; name another OUTPUT_DIR, or give that file another name"
            )


def begin_log(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Log environment, command line and config, and seed all generators; every process calls this.

    Args:
        cfg: with a SEED of 0 or more.
        args: of the command line, with ``config_file`` and ``eval_only``.

    Raises:
        OSError, ValueError: OUTPUT_DIR cannot be written.
    """
    rank, folder, config = comm.get_rank(), cfg.OUTPUT_DIR, cfg.dump()
    if folder and comm.is_main_process():
        # Before anything is done: config.yaml is written last.
        probe_folder(folder, len(config.encode()))
    setup_logger(folder, distributed_rank=rank, name="fvcore")
    logger = setup_logger(folder, distributed_rank=rank)
    setup_logger(folder, distributed_rank=rank, name="tagclip")
    logger.info("Process %d of %d", rank, comm.get_world_size())
    logger.info("Environment:\n%s", collect_env_info())
    logger.info("Command line: %s", args)
    if args.config_file:
        content = Path(args.config_file).read_text(encoding="utf-8")
        logger.info("Config file %s:\n%s", args.config_file, content)
    logger.info("Config:\n%s", config)
    seed_all_rng(cfg.SEED + rank)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def save_config(cfg: CfgNode, is_evaluation: bool = False) -> None:
    """Write ``config.yaml``; that of a training stays when its folder gets an evaluation.

    Each result keeps the config of its own evaluation beside it, see `run_config`.

    Raises:
        ConfigError: it cannot be written.
    """
    if not cfg.OUTPUT_DIR or not comm.is_main_process():
        return
    folder = Path(cfg.OUTPUT_DIR)
    path = folder / CONFIG
    if is_evaluation and path.is_file() and _stays(folder):
        return
    try:
        write_atomic(path, cfg.dump())
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); free space or name another OUTPUT_DIR"
        ) from error


def _stays(folder: Path) -> bool:
    """Whether a training left its config there."""
    return (folder / LAST).exists() or any(folder.glob("model_*.pth"))


def _is_of_run(path: Path) -> bool:
    """Whether a config has all keys itself, as that of a run has."""
    try:
        tree = load_yaml(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(tree, dict) and tree.keys() >= _SELDOM_WRITTEN
