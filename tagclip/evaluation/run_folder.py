"""The OUTPUT_DIR of a run on disk: its config, how it is evaluated again, folders of results."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from tagclip.config.loading import load_config
from tagclip.errors import ConfigError
from tagclip.projects import import_projects

__all__ = ["empty_folder", "evaluation_command", "run_config", "writable"]


def run_config(run: Path) -> CfgNode:
    """Read the config of a run, and import its projects.

    Raises:
        ConfigError: there is none.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{run}: found no config.yaml, expected the OUTPUT_DIR of a run; train or evaluate "
            "one with tools/train_net.py"
        )
    cfg = load_config(path)
    import_projects(cfg.PROJECTS)
    return cfg


def evaluation_command(run: Path, cfg: CfgNode, dataset: str, *options: str) -> str:
    """Return what evaluates a run again on a dataset, with config keys and values at its end."""
    words = ["python tools/train_net.py --config-file", str(run / "config.yaml"), "--eval-only"]
    if (run / "last_checkpoint").is_file():
        words.append("--resume")
    elif not cfg.MODEL.WEIGHTS:
        words.append("MODEL.WEIGHTS CHECKPOINT")
    if dataset not in cfg.DATASETS.TEST:
        words.append(f"DATASETS.TEST \"('{dataset}',)\"")
    return " ".join([*words, "OUTPUT_DIR", str(run), *options])


def empty_folder(folder: Path, distributed: bool) -> None:
    """Remove what an earlier evaluation left; every process of the evaluation calls this.

    Args:
        folder: may be missing.
        distributed: whether several processes do; the main one removes, all wait for it.
    """
    if folder.exists() and not (distributed and comm.get_rank()):
        shutil.rmtree(folder)
    if distributed:
        comm.synchronize()


@contextmanager
def writable(folder: Path, what: str, remedy: str) -> Iterator[None]:
    """Say in one line why the results of an evaluation cannot be written.

    Args:
        folder: where to.
        what: they are.
        remedy: a key and value that does without them.

    Raises:
        ConfigError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{folder}: {what} cannot be written ({error.strerror}); free space, set another "
            f"OUTPUT_DIR, or {remedy}"
        ) from error
