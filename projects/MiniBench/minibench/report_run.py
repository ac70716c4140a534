"""A run on disk: its config, result and training curve, and its model built anew."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from tagclip import TagCLIP, Vocabulary
from tagclip.checkpoint import last_checkpoint, load_trained
from tagclip.config import available_device
from tagclip.data import Protocol
from tagclip.errors import CheckpointError, ConfigError
from tagclip.evaluation.results import read_metrics
from tagclip.evaluation.run_folder import run_config
from tagclip.utils.untrusted import load_json

__all__ = ["TrainedRun", "load_model", "read_run"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """A trained and evaluated run.

    Attributes:
        folder: its ``OUTPUT_DIR``.
        cfg: its config, on a device that this machine has.
        dataset: name of the evaluated dataset.
        vocabulary: the classes asked, with seen as the model was trained.
        result: content of ``inference/<dataset>/metrics.json``.
        curve: iteration -> what was logged there.
    """

    folder: Path
    cfg: CfgNode
    dataset: str
    vocabulary: Vocabulary
    result: dict[str, Any]
    curve: dict[int, dict[str, float]]


def read_run(folder: Path) -> TrainedRun:
    """Read config, result and training curve.

    Raises:
        ConfigError: the folder holds no evaluated run, or its files are damaged or disagree.
    """
    cfg = run_config(folder)
    cfg.OUTPUT_DIR = str(folder)
    cfg.MODEL.TAGCLIP.TEST.OUTPUT = "labels"
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE)
    if not cfg.DATASETS.TEST:
        raise ConfigError(
            f"{folder}: found an empty DATASETS.TEST in its config, expected an evaluated dataset"
        )
    dataset = cfg.DATASETS.TEST[0]
    vocabulary = Protocol(cfg).asked(dataset)
    result = _read_result(folder / "inference" / dataset / "metrics.json", vocabulary)
    return TrainedRun(
        folder, cfg, dataset, vocabulary, result, _read_curve(folder / "metrics.json")
    )


def _read_result(path: Path, vocabulary: Vocabulary) -> dict[str, Any]:
    result = read_metrics(path)
    found = str(result.get("vocabulary_fingerprint"))
    if found != vocabulary.fingerprint:
        raise ConfigError(
            f"{path}: found the vocabulary {found[:12]}, expected {vocabulary.fingerprint[:12]} "
            f"of {vocabulary.name}; the class list has changed: evaluate the run again"
        )
    return result


def _read_curve(path: Path) -> dict[int, dict[str, float | None]]:
    """Merge the lines of each iteration; what a run did before it was resumed further back, or
    began anew, is left out.
    """
    curve: dict[int, dict[str, float | None]] = {}
    lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            entry = load_json(line)
            iteration = int(entry["iteration"])
            if curve and next(reversed(curve)) > iteration:
                curve = {each: row for each, row in curve.items() if each < iteration}
            curve.setdefault(iteration, {}).update(entry)
        except (ValueError, KeyError, TypeError):
            logger.warning("%s: line %d is damaged and left out of the curve", path, number)
    return dict(sorted(curve.items()))


def load_model(run: TrainedRun) -> TagCLIP:
    """Build the model and load the run's last checkpoint, or the one that it only evaluated.

    Raises:
        CheckpointError: there is none, or it is damaged or does not fit the config.
    """
    path = last_checkpoint(run.folder) or run.cfg.MODEL.WEIGHTS
    if not path:
        raise CheckpointError(
            f"--run {run.folder}: found no last_checkpoint, expected that of a training; train "
            "again or evaluate a checkpoint with tagclip evaluate"
        )
    return load_trained(run.cfg, path)
