"""Constants of the additive gate, fitted on seen classes that a training run holds out.

Neither the labels nor the names of the classes that are unseen to the user's own run take part
(docs/method.md, section 8).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from tagclip.analysis.bias_curves import BiasCurve
from tagclip.analysis.gate_comparison import compare_gates
from tagclip.config.checks import bounds, check_training
from tagclip.data import Protocol
from tagclip.data.datasets.changed_copies import changed_datasets, write_vocabulary
from tagclip.data.datasets.walk import map_files
from tagclip.data.label_io import check_label, read_label
from tagclip.engine.data_stream import contents_sha256
from tagclip.engine.finished_run import refuse_finished_run
from tagclip.engine.run_info import announce_shared_images
from tagclip.engine.trainer import ZeroShotTrainer
from tagclip.errors import ConfigError, DatasetError, VocabularyError
from tagclip.modeling.inference.gate import Gate
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.class_names import name_key, split_words

__all__ = [
    "SCALES",
    "Constants",
    "announce_known_images",
    "best_constants",
    "held_out_classes",
    "held_out_curves",
    "refuse_unshown",
    "to_json",
    "training_contents",
]

# Candidates of MODEL.TAGCLIP.TEST.GATE_SCALE; 0 leaves the map out where it does not help.
SCALES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


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
        words: see `split_words`.

    Raises:
        VocabularyError: a word names no seen class, or no seen class is left.
    """
    seen = [n for n, flag in zip(vocabulary.names, vocabulary.seen_mask, strict=True) if flag]
    chosen: list[str] = []
    for word in split_words(words):
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
    cfg: CfgNode, dataset: str, held_out: Sequence[str], folder: Path, contents: str
) -> dict[float, BiasCurve]:
    """Train without the labels of some seen classes and measure them as unseen ones.

    Args:
        cfg: of the user's run, inductive and with a trusty map.
        dataset: registered name of the images to fit on.
        held_out: names of seen classes.
        folder: for the run.
        contents: `training_contents`, which the models of another call may not have.

    Returns:
        Scale -> curve over the bias: ``seen`` are the other seen classes, ``unseen`` the held-out
        ones; the run's own unseen classes are neither asked nor counted.

    Raises:
        ConfigError: nothing would be learned, the setting is not inductive, there is no trusty map,
            MODEL.WEIGHTS is set, or the folder holds the run of another config or of other labels.
    """
    if cfg.MODEL.WEIGHTS:
        raise ConfigError(
            f"MODEL.WEIGHTS: found {cfg.MODEL.WEIGHTS}, expected none: a gate is fitted on "
            "trainings that begin from CLIP; leave it out"
        )
    if cfg.DATASETS.ZERO_SHOT.SETTING != "inductive" or not cfg.MODEL.TAGCLIP.TRUSTY.ENABLED:
        raise ConfigError(
            f"DATASETS.ZERO_SHOT.SETTING {cfg.DATASETS.ZERO_SHOT.SETTING}, MODEL.TAGCLIP.TRUSTY."
            f"ENABLED {cfg.MODEL.TAGCLIP.TRUSTY.ENABLED}: expected inductive and True to fit a gate"
        )
    check_training(cfg)
    protocol = Protocol(cfg)
    full, asked = protocol.full, protocol.dataset(dataset).restrict("seen")
    # The dataset may spell them otherwise.
    held = set(map(name_key, held_out))
    partition = asked.with_seen([name_key(name) not in held for name in asked.names])
    gates = {str(scale): Gate(form="additive", scale=scale, bias=0.0) for scale in SCALES}
    path = write_vocabulary(_without_labels(full, held_out), folder / "held_out.json")
    with changed_datasets(cfg, vocabulary=path) as changed:
        changed.DATASETS.TEST, changed.DATASETS.ZERO_SHOT.SPLIT = (), ""
        changed.OUTPUT_DIR, changed.MODEL.WEIGHTS = str(folder), ""
        # They are of a test set.
        changed.TEST.EXPECTED_RESULTS = []
        trainer = ZeroShotTrainer(changed)
        trainer.checkpointer.metadata["training_contents"] = contents
        # The same command goes on with its own trainings; with another's it would fit their gate.
        refuse_finished_run(
            str(folder), trainer.checkpointer.metadata, "", "name another --output", unfinished=True
        )
        trainer.resume_or_load(resume=True)
        trainer.train()
        model = trainer.model.eval()
        found = compare_gates(changed, model, dataset, partition, partition, gates)
    return {scale: found[str(scale)].curves["own"] for scale in SCALES}


def training_contents(cfg: CfgNode) -> str:
    """`contents_sha256` of the training images of a run: the same for whatever is held out."""
    return contents_sha256(_samples(cfg.DATASETS.TRAIN))


def announce_known_images(cfg: CfgNode, dataset: str) -> None:
    """Warn of images to fit on that the models are trained on, or that are tested on.

    Args:
        cfg: of the user's run.
        dataset: registered name of the images to fit on.

    Raises:
        DatasetError: a dataset is not registered, or its files are not there.
    """
    protocol = Protocol(cfg)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, dataset):
        protocol.dataset(name)
    harm = "the models know them, and the gate will not suit new images"
    announce_shared_images(_samples(cfg.DATASETS.TRAIN), [dataset], harm=harm)
    for name in cfg.DATASETS.TEST:
        harm = "what is fitted on them makes its result too good"
        announce_shared_images(_samples([name]), [dataset], f"images of the test set {name}", harm)


def refuse_unshown(cfg: CfgNode, dataset: str, groups: Iterable[Sequence[str]]) -> None:
    """Refuse groups that the images to fit on do not show, which a curve needs.

    Label files are read until all groups, and other seen classes than theirs, have been found.

    Args:
        cfg: of the user's run.
        dataset: registered name of the images to fit on.
        groups: names of the classes that each model holds out.

    Raises:
        DatasetError: none of a group is shown, or nothing but it; or a label file is missing or
            damaged.
    """
    seen = set(map(name_key, Protocol(cfg).dataset(dataset).restrict("seen").names))
    shown, sides = set(), []
    for group in groups:
        held = set(map(name_key, group))
        sides += [(group, "them", seen & held), (group, "other seen classes", seen - held)]
    read = partial(_shown_classes, vocabulary=Vocabulary.from_metadata(dataset))
    for names in map_files(read, _samples([dataset]), "Looking for held-out classes"):
        shown |= names
        if all(side & shown for *_, side in sides):
            return
    group, what = next((group, what) for group, what, side in sides if not side & shown)
    raise DatasetError(
        f"--hold-out {', '.join(group)}: found no labelled pixel of {what} in --dataset {dataset}, "
        "expected some to fit on; hold out other classes, or name a --dataset that shows them"
    )


def _shown_classes(sample: dict[str, Any], vocabulary: Vocabulary) -> set[str]:
    """`name_key` of the classes in a label file."""
    path, image = sample["sem_seg_file_name"], sample["file_name"]
    label = read_label(path, vocabulary)
    check_label(label, path, vocabulary, label.shape, image)
    entries = map(vocabulary.by_value.get, np.unique(label).tolist())
    return {name_key(entry.name) for entry in entries if entry is not None}


def _samples(datasets: Iterable[str]) -> list[dict[str, Any]]:
    return [sample for name in datasets for sample in DatasetCatalog.get(name)]


def _without_labels(full: Vocabulary, held_out: Sequence[str]) -> Vocabulary:
    """The class list of the run with more unseen classes."""
    pairs = zip(full.names, full.seen_mask, strict=True)
    names = [name for name, seen in pairs if seen and name not in held_out]
    return replace(full.with_seen(names), split="held out")


def best_constants(curves: Sequence[dict[float, BiasCurve]]) -> Constants:
    """Scale and bias, as keys of the config take them, with the highest mean hIoU over the runs."""
    found, (low, high) = [], bounds("MODEL.TAGCLIP.TEST.SEEN_BIAS")
    for scale in SCALES:
        biases = curves[0][scale].biases
        # A curve has biases beyond, infinite ones at its ends.
        possible = (biases >= low) & (biases <= high)
        mean = np.mean([curve[scale].hiou[possible] for curve in curves], axis=0)
        index = int(mean.argmax())
        found.append(Constants(scale, float(biases[possible][index]), float(mean[index])))
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
