"""Constants of the additive gate, fitted on seen classes that a training run holds out.

Neither the labels nor the names of the classes that are unseen to the user's own run take part
(docs/method.md, section 8).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from tagclip.data import dataset_vocabulary
from tagclip.data.datasets.register import register_again
from tagclip.engine.trainer import ZeroShotTrainer
from tagclip.errors import ConfigError, VocabularyError
from tagclip.evaluation.analysis_curves import Curve
from tagclip.evaluation.gate_analysis import analyze_gates
from tagclip.modeling.gating import gate_scores
from tagclip.utils.files import write_atomic
from tagclip.vocabulary import Vocabulary

__all__ = ["SCALES", "Constants", "best_constants", "held_out_classes", "held_out_curves"]

# Candidates of MODEL.TAGCLIP.TEST.GATE_SCALE; 0 leaves the map out where it does not help.
SCALES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
_SPLIT = "held_out"


@dataclass(frozen=True)
class Constants:
    """What the fit found.

    Attributes:
        scale: MODEL.TAGCLIP.TEST.GATE_SCALE.
        bias: MODEL.TAGCLIP.TEST.SEEN_BIAS.
        hiou: mean hIoU of the held-out runs with them, in percent.
    """

    scale: float
    bias: float
    hiou: float


def held_out_classes(vocabulary: Vocabulary, words: str) -> list[str]:
    """Seen classes that a list of words names: whole names, or words of names.

    Args:
        vocabulary: the dataset's classes with the split of the user's run.
        words: separated by commas.

    Raises:
        VocabularyError: a word names no seen class, or no seen class is left.
    """
    seen = [n for n, flag in zip(vocabulary.names, vocabulary.seen_mask, strict=True) if flag]
    chosen: list[str] = []
    for word in (part.strip() for part in words.split(",")):
        found = [name for name in seen if word and (word == name or word in name.split())]
        if not found:
            raise VocabularyError(
                f"--hold-out: found {word!r}, expected a seen class of {vocabulary.name} or a "
                f"word of its name, such as {seen[0]!r}"
            )
        chosen += [name for name in found if name not in chosen]
    if len(chosen) == len(seen):
        raise VocabularyError(
            f"--hold-out: {words!r} names all {len(seen)} seen classes, expected fewer"
        )
    return chosen


def held_out_curves(
    cfg: CfgNode, dataset: str, held_out: Sequence[str], folder: Path
) -> dict[float, Curve]:
    """Train without the labels of some seen classes and measure them as unseen ones.

    Args:
        cfg: of the user's run, inductive and with a trusty map.
        dataset: registered name of the images to fit on.
        held_out: names of seen classes.
        folder: for the run.

    Returns:
        Scale -> curve over the bias: ``seen`` are the other seen classes, ``unseen`` the held-out
        ones; the run's own unseen classes are neither asked nor counted.

    Raises:
        ConfigError: the setting is not inductive, or there is no trusty map.
    """
    if cfg.DATASETS.ZERO_SHOT.SETTING != "inductive" or not cfg.MODEL.TAGCLIP.TRUSTY.ENABLED:
        raise ConfigError(
            f"DATASETS.ZERO_SHOT.SETTING {cfg.DATASETS.ZERO_SHOT.SETTING}, MODEL.TAGCLIP.TRUSTY."
            f"ENABLED {cfg.MODEL.TAGCLIP.TRUSTY.ENABLED}: expected inductive and True to fit a gate"
        )
    own = dataset_vocabulary(cfg, dataset)
    asked = own.restrict("seen")
    cfg = _held_out_config(cfg, held_out, folder)
    trainer = ZeroShotTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    partition = asked.with_seen([name not in held_out for name in asked.names])
    gates = {
        str(scale): partial(gate_scores, form="additive", scale=scale, bias=0.0) for scale in SCALES
    }
    model = trainer.model.eval()
    found = analyze_gates(cfg, model, dataset, partition, partition, gates)
    return {scale: found[str(scale)].curves["own"] for scale in SCALES}


def _held_out_config(cfg: CfgNode, held_out: Sequence[str], folder: Path) -> CfgNode:
    """The user's config with more unseen classes."""
    cfg = cfg.clone()
    unseen = dataset_vocabulary(cfg, cfg.DATASETS.TRAIN[0]).unseen_names
    names = []
    for name in cfg.DATASETS.TRAIN:
        tree = json.loads(Path(MetadataCatalog.get(name).vocabulary).read_text(encoding="utf-8"))
        tree["splits"] = {_SPLIT: {"unseen": [*unseen, *held_out]}}
        tree["default_split"] = _SPLIT
        path = write_atomic(folder / f"{name}.json", json.dumps(tree, indent=1) + "\n")
        names.append(f"{name}_{folder.name}")
        register_again(name, names[-1], path)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(names), ()
    cfg.DATASETS.ZERO_SHOT.SPLIT = _SPLIT
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = str(folder), ""
    return cfg


def best_constants(curves: Sequence[dict[float, Curve]]) -> Constants:
    """Scale and bias with the highest mean hIoU over the held-out runs."""
    found = []
    for scale in SCALES:
        mean = np.mean([curve[scale].hiou for curve in curves], axis=0)
        index = int(mean.argmax())
        found.append(Constants(scale, float(curves[0][scale].biases[index]), float(mean[index])))
    return max(found, key=lambda constants: constants.hiou)


def to_json(constants: Constants, held_out: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What the command writes."""
    return {
        "GATE_FORM": "additive",
        "GATE_SCALE": constants.scale,
        "SEEN_BIAS": round(constants.bias, 3),
        "hIoU": round(constants.hiou, 2),
        "held_out": [list(names) for names in held_out],
    }
