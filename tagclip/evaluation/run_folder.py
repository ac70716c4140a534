"""The OUTPUT_DIR of a run on disk: its config, and how it is evaluated again."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode

from tagclip.config.loading import load_config
from tagclip.errors import ConfigError
from tagclip.projects import import_projects

__all__ = ["evaluation_command", "run_config"]


def run_config(run: Path) -> CfgNode:
    """Read the config of a run, and import its projects.

    Raises:
        ConfigError: there is none.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{run}: found no config.yaml, expected the OUTPUT_DIR of a run; run tagclip "
            "train or tagclip evaluate"
        )
    cfg = load_config(path)
    import_projects(cfg.PROJECTS)
    return cfg


def evaluation_command(run: Path, cfg: CfgNode, dataset: str, *options: str) -> str:
    """Return what evaluates a run again on a dataset, with config keys and values at its end."""
    words = ["tagclip evaluate --config-file", str(run / "config.yaml")]
    if (run / "last_checkpoint").is_file():
        words.append("--resume")
    elif not cfg.MODEL.WEIGHTS:
        words.append("--weights CHECKPOINT")
    if dataset not in cfg.DATASETS.TEST:
        words.append(f"DATASETS.TEST \"('{dataset}',)\"")
    return " ".join([*words, "OUTPUT_DIR", str(run), *options])
