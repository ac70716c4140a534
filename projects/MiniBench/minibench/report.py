"""What a finished run learned: pictures and one page, written into its folder."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from tagclip import (
    TagCLIP,
    TagCLIPCheckpointer,
    Vocabulary,
    ZeroShotDatasetMapper,
    ZeroShotTrainer,
    load_config,
)
from tagclip.data import query_vocabulary, read_image, read_label
from tagclip.engine import checkpoint_metadata
from tagclip.errors import CheckpointError, ConfigError, DatasetError
from tagclip.evaluation import confusion_matrix, per_class, summarize
from tagclip.projects import import_projects

__all__ = ["Run", "Shown", "choose", "load_model", "predict", "rank_images", "read_run"]

logger = logging.getLogger(__name__)

# Percent that the mIoU may differ from the stored one, which may come from another device.
_TOLERANCE = 0.5


@dataclass(frozen=True)
class Run:
    """A trained and evaluated run on disk.

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


@dataclass(frozen=True)
class Shown:
    """One image of the gallery.

    Attributes:
        title: its rank and score.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) int32, indices into the vocabulary, its ``ignore_index`` elsewhere.
        prediction: (H, W) int16 or int32 indices.
        trusty: (H, W) float32, P(pixel belongs to a seen class), or None without a token.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    trusty: np.ndarray | None


def read_run(folder: Path) -> Run:
    """Read config, result and training curve of a run.

    Raises:
        ConfigError: the folder holds no finished run, or its files are damaged or disagree.
    """
    config_file = folder / "config.yaml"
    if not config_file.is_file():
        raise ConfigError(
            f"--run {folder}: found no config.yaml, expected the OUTPUT_DIR of a run; train one "
            "with tools/train_net.py"
        )
    cfg = load_config(config_file)
    import_projects(cfg.PROJECTS)
    cfg.OUTPUT_DIR = str(folder)
    cfg.MODEL.TAGCLIP.TEST.OUTPUT = "labels"
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if not cfg.DATASETS.TEST:
        raise ConfigError(f"{config_file}: DATASETS.TEST is empty, expected an evaluated dataset")
    dataset = cfg.DATASETS.TEST[0]
    vocabulary = query_vocabulary(cfg, dataset)
    result = _read_result(folder / "inference" / dataset / "metrics.json", vocabulary)
    return Run(folder, cfg, dataset, vocabulary, result, _read_curve(folder / "metrics.json"))


def _read_result(path: Path, vocabulary: Vocabulary) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        found = result["vocabulary_fingerprint"]
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such result; evaluate the run with tools/train_net.py --eval-only"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: damaged ({error}); evaluate the run again") from error
    if found != vocabulary.fingerprint:
        raise ConfigError(
            f"{path}: its vocabulary has fingerprint {found[:12]}, expected "
            f"{vocabulary.fingerprint[:12]}; the class list has changed: evaluate the run again"
        )
    return result


def _read_curve(path: Path) -> dict[int, dict[str, float]]:
    """Merge the lines of each iteration; a resumed run replaces what it did again."""
    curve: dict[int, dict[str, float]] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            curve.setdefault(int(entry["iteration"]), {}).update(entry)
        except (ValueError, KeyError, TypeError):
            logger.warning("%s: line %d is damaged and left out of the curve", path, number)
    return dict(sorted(curve.items()))


def load_model(run: Run) -> TagCLIP:
    """Build the model of a run and load its last checkpoint.

    Raises:
        CheckpointError: there is none, or it does not fit the config.
    """
    model = ZeroShotTrainer.build_model(run.cfg).eval()
    checkpointer = TagCLIPCheckpointer(
        model, str(run.folder), metadata=checkpoint_metadata(run.cfg, model)
    )
    if not checkpointer.has_checkpoint():
        raise CheckpointError(
            f"{run.folder}: found no last_checkpoint, expected that of a finished training"
        )
    checkpointer.load(checkpointer.get_checkpoint_file())
    return model


def predict(run: Run, model: TagCLIP) -> Iterator[tuple[str, Shown]]:
    """Yield (file stem, image without title) for every image of the dataset, in order."""
    for sample in DatasetCatalog.get(run.dataset):
        yield Path(sample["file_name"]).stem, _predict_one(run, model, sample)


def _predict_one(run: Run, model: TagCLIP, sample: dict[str, str]) -> Shown:
    mapper = ZeroShotDatasetMapper(run.cfg, is_train=False, dataset_name=run.dataset)
    (output,) = model([mapper(dict(sample))])
    trusty = output.get("trusty")
    return Shown(
        title="",
        image=read_image(sample["file_name"]),
        truth=run.vocabulary.label_lut()[read_label(sample["sem_seg_file_name"])],
        prediction=output["sem_seg_labels"].cpu().numpy(),
        trusty=None if trusty is None else trusty.float().cpu().numpy(),
    )
