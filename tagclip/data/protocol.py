"""The zero-shot protocol: which classes a run trains on and which it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from tagclip.config.checks import check_config, check_value
from tagclip.data.datasets.register import register_datasets
from tagclip.errors import ConfigError, VocabularyError
from tagclip.structures.provenance import Stage
from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_json import read_vocabulary_text, split_names
from tagclip.utils.text import json_text

__all__ = ["Protocol", "requested_vocabulary", "resolve_seen"]


class Protocol:
    """What a config says about seen and unseen classes.

    Nothing is read before it is asked for, and the class lists of training are read once. Later
    changes of the config do not matter.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Keep the config as it is now; `check` tells whether it makes sense."""
        self._cfg = cfg.clone()

    @cached_property
    def setting(self) -> str:
        """DATASETS.ZERO_SHOT.SETTING: "inductive", "transductive" or "supervised".

        Raises:
            ConfigError: it is none of these.
        """
        setting = self._cfg.DATASETS.ZERO_SHOT.SETTING
        check_value("DATASETS.ZERO_SHOT.SETTING", setting)
        return setting

    @cached_property
    def full(self) -> Vocabulary:
        """Full class list of the training datasets, with the partition of the split.

        Raises:
            ConfigError: DATASETS.TRAIN is empty, its datasets disagree, or nothing says which
                classes are seen.
            ConfigError, DatasetError, VocabularyError: see `dataset`.
        """
        names = list(self._cfg.DATASETS.TRAIN)
        if not names:
            raise ConfigError(
                "DATASETS.TRAIN: found no dataset, expected those that the model learns from; give "
                "a config (--config-file; a run's is config.yaml in its OUTPUT_DIR), or the key"
            )
        first, *others = [self.dataset(name) for name in names]
        for name, other in zip(names[1:], others, strict=True):
            if other.partition_fingerprint != first.partition_fingerprint:
                files = self._json_of(names[0]), self._json_of(name)
                raise ConfigError(
                    f"DATASETS.TRAIN: {names[0]} ({len(first)} classes, {files[0]}) and {name} "
                    f"({len(other)} classes, {files[1]}) differ in classes or split; "
                    "train on datasets with the same vocabulary"
                )
        if first.seen is None and self.setting != "supervised":
            raise ConfigError(self._describe_open(names[0], first))
        return first

    @property
    def has_partition(self) -> bool:
        """Whether the class lists of DATASETS.TRAIN say which classes are seen.

        Raises:
            ConfigError, DatasetError, VocabularyError: see `dataset`.
        """
        return all(self.dataset(name).seen is not None for name in self._cfg.DATASETS.TRAIN)

    def _describe_open(self, name: str, vocabulary: Vocabulary) -> str:
        """What is wrong with a training dataset without partition, and the line to add."""
        where = f"{self._json_of(name)} (dataset {name})"
        if splits := split_names(self._text_of(name)):
            lines = (f"DATASETS.ZERO_SHOT.SPLIT {split}" for split in splits)
            return (
                f"DATASETS.ZERO_SHOT.SPLIT is empty and {where} has no default_split; "
                f"set {' or '.join(lines)}"
            )
        text = (
            f"{where} has no splits, and DATASETS.ZERO_SHOT.SETTING is {self.setting!r}, which "
            "needs unseen classes; if every class has labels, set DATASETS.ZERO_SHOT.SETTING "
            "supervised"
        )
        if len(vocabulary) == 1:
            # Seen and unseen classes need two.
            return text
        mine = {"splits": {"mine": {"unseen": vocabulary.names[-1:]}}, "default_split": "mine"}
        return (
            f"{text}; otherwise name the unseen classes in the json, such as "
            f"{json_text(mine, ensure_ascii=False)[1:-1]}"
        )

    @cached_property
    def training(self) -> Vocabulary:
        """The classes that training asks for; those called seen have labels.

        Inductive: the seen classes of the split. Transductive: all classes, with the partition of
        the split. Supervised: all classes, all of them seen.

        Raises:
            ConfigError: the setting is unknown or does not suit the split.
            ConfigError, DatasetError, VocabularyError: see `full`.
        """
        full = self.full
        if self.setting == "supervised":
            return full.with_seen([True] * len(full))
        if self.setting == "inductive":
            return full.restrict("seen")
        if not 0 < full.num_seen < len(full):
            raise ConfigError(
                f"DATASETS.ZERO_SHOT.SETTING is 'transductive', but split {full.split!r} has "
                f"{full.num_seen} seen and {len(full) - full.num_seen} unseen classes, expected "
                "some of both; name another split or setting"
            )
        return full

    def dataset(self, name: str) -> Vocabulary:
        """Full class list of a dataset with the partition for reporting.

        The partition is the split `DATASETS.ZERO_SHOT.SPLIT`. A dataset that is not trained on and
        lacks it uses its default split; one without splits leaves the partition open.

        Raises:
            ConfigError: a training dataset lacks the split.
            DatasetError, VocabularyError: the dataset is not registered, or its json is
                inconsistent.
        """
        register_datasets(self._cfg)
        split = self._cfg.DATASETS.ZERO_SHOT.SPLIT
        default = self._class_list(name)
        is_trained = name in self._cfg.DATASETS.TRAIN
        if not split or not split_names(self._text_of(name)):
            return default
        try:
            return self._class_list(name, split)
        except VocabularyError as error:
            if is_trained:
                raise ConfigError(
                    f"DATASETS.ZERO_SHOT.SPLIT is {split!r}, which training dataset {name} lacks "
                    f"({error}); name one of its splits"
                ) from error
            return default

    @cached_property
    def carried(self) -> dict[str, str]:
        """Dataset -> text of its vocabulary json, of those in DATASETS.VOCABULARIES.

        Raises:
            ConfigError: an entry is none, or not the only one of its dataset.
            VocabularyError: the text of one is no vocabulary, whether or not it is asked.
        """
        entries = self._cfg.DATASETS.VOCABULARIES
        texts: dict[str, str] = {}
        for entry in entries:
            is_entry = isinstance(entry, Mapping) and entry.keys() == {"dataset", "json"}
            if not is_entry or not all(isinstance(value, str) for value in entry.values()):
                raise ConfigError(
                    f"DATASETS.VOCABULARIES: found {entry!r:.60}, expected {{dataset: NAME, json: "
                    "TEXT}; leave it to checkpoints and name json files in "
                    "DATASETS.FOLDER_DATASETS"
                )
            name, text = entry["dataset"], entry["json"]
            if name in texts:
                raise ConfigError(
                    f"DATASETS.VOCABULARIES: found several of {name!r}, expected one; leave out "
                    "all others"
                )
            Vocabulary.from_text(text, "", _carried(name))
            texts[name] = text
        return texts

    def class_list_texts(self) -> dict[str, str]:
        """Dataset -> text of its vocabulary json, of all that a model is built of.

        These are DATASETS.TRAIN and the first of DATASETS.TEST.

        Raises:
            ConfigError, DatasetError, VocabularyError: see `dataset`.
        """
        names = (*self._cfg.DATASETS.TRAIN, *self._cfg.DATASETS.TEST[:1])
        for name in names:
            self.dataset(name)
        texts = {name: self._text_of(name) for name in names}
        # One object for datasets that share it: a checkpoint stores it once.
        return {name: sys.intern(text) for name, text in texts.items()}

    def _class_list(self, name: str, split: str = "") -> Vocabulary:
        if name in self.carried:
            return Vocabulary.from_text(self.carried[name], split, self._json_of(name))
        return Vocabulary.from_metadata(name, split)

    def _text_of(self, name: str) -> str:
        if name in self.carried:
            return self.carried[name]
        return read_vocabulary_text(Path(self._json_of(name)))

    def _json_of(self, name: str) -> str:
        if name in self.carried:
            return _carried(name)
        return str(MetadataCatalog.get(name).vocabulary)

    def asked(self, dataset_name: str) -> Vocabulary:
        """The classes that evaluation asks for, where seen means: the model was trained on it.

        With the class list of the training data, the partition is that of training. With another
        one, `MODEL.TAGCLIP.TEST.UNKNOWN_CLASSES` decides: by names that training has seen
        ("match"), or all classes alike. Colours that the training list gives are kept by name.

        Raises:
            ConfigError, DatasetError, VocabularyError: see `dataset` and `training`.
        """
        vocabulary, full = self.dataset(dataset_name), self.full
        if vocabulary.fingerprint == full.fingerprint:
            if self.setting == "supervised":
                return replace(vocabulary, seen=(True,) * len(vocabulary), split="")
            return replace(vocabulary, seen=full.seen, split=full.split)
        policy = self._cfg.MODEL.TAGCLIP.TEST.UNKNOWN_CLASSES
        asked = replace(vocabulary, seen=None).match_colors(full)
        return resolve_seen(asked, self.training, policy)

    @property
    def summary(self) -> str:
        """One line: setting, split, numbers of classes, fate of unseen labels, trusty target."""
        full = self.full
        if self.setting == "supervised":
            classes = f"{len(full)} classes, all with labels"
        else:
            classes = (
                f"split {full.split}: {full.num_seen} seen / {len(full) - full.num_seen} unseen; "
                "unseen labels dropped in the mapper"
            )
        if self.setting == "transductive":
            classes += f"; {self._pseudo_label_summary()}"
        trusty = self._cfg.MODEL.TAGCLIP.TRUSTY
        target = f"trusty target = {trusty.TARGET}" if trusty.ENABLED else "no trusty token"
        if self._has_novel_target:
            target += f" (reads where unseen pixels are, outside the {self.setting} protocol)"
        return f"{self.setting}, {classes}; {target}"

    def stage(self) -> Stage:
        """What a training with this config adds to the provenance of its model."""
        full = self.full
        masks = [True] * len(full) if self.setting == "supervised" else full.seen_mask
        sides: dict[bool, list[tuple[str, ...]]] = {True: [], False: []}
        for entry, has_masks in zip(full.classes, masks, strict=True):
            sides[bool(has_masks)].append(entry.names)
        unseen = tuple(names[0] for names in sides[False])
        return Stage(
            setting=self.setting,
            split="" if self.setting == "supervised" else full.split,
            vocabulary=full.name,
            fingerprint=full.partition_fingerprint,
            datasets=tuple(self._cfg.DATASETS.TRAIN),
            masks=tuple(sides[True]),
            others=tuple(sides[False]),
            pseudo_labels=unseen if self.setting == "transductive" else (),
            positions=unseen if self.reads_novel_masks else (),
        )

    @property
    def unseen(self) -> list[str]:
        """Names of the classes that training calls unseen; none in the supervised setting."""
        return [] if self.setting == "supervised" else self.full.unseen_names

    @property
    def allows_trained_unseen(self) -> bool:
        """DATASETS.ZERO_SHOT.ALLOW_TRAINED_UNSEEN."""
        return self._cfg.DATASETS.ZERO_SHOT.ALLOW_TRAINED_UNSEEN

    def splits(self) -> dict[str, Vocabulary]:
        """The class list of the training data by each split that it has."""
        name = self._cfg.DATASETS.TRAIN[0]
        return {s: self._class_list(name, s) for s in split_names(self._text_of(name))}

    def _pseudo_label_summary(self) -> str:
        rule = self._cfg.MODEL.TAGCLIP.SELF_TRAINING
        if rule.REGION == "novel":
            return "pseudo-labels on unseen pixels (reads where they are)"
        gated = "gated" if rule.GATE else "ungated"
        compared = ", compared with the unseen pixels in the log" * self.monitors_pseudo_labels
        return (
            f"pseudo-labels on unlabelled pixels, {gated}, from score {rule.THRESHOLD:g}{compared}"
        )

    @property
    def reads_novel_masks(self) -> bool:
        """Whether training reads where the pixels of unseen classes are (never which class)."""
        region = self._cfg.MODEL.TAGCLIP.SELF_TRAINING.REGION
        return self._has_novel_target or (self.setting == "transductive" and region == "novel")

    @property
    def _has_novel_target(self) -> bool:
        trusty = self._cfg.MODEL.TAGCLIP.TRUSTY
        return trusty.ENABLED and trusty.TARGET == "novel"

    @property
    def monitors_pseudo_labels(self) -> bool:
        """Whether the log says how many pseudo-labels are on unseen pixels.

        Nothing learns from it.
        """
        return self.setting == "transductive" and self._cfg.DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS

    def check(self) -> None:
        """Check all keys of the protocol together, before anything expensive is built.

        Raises:
            ConfigError: a value is unknown, keys contradict each other, or datasets disagree.
            DatasetError, VocabularyError: see `dataset`.
        """
        check_config(self._cfg)
        if self.reads_novel_masks and not self._cfg.DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS:
            key, other = "SELF_TRAINING.REGION", "unlabeled"
            if self._has_novel_target:
                key, other = "TRUSTY.TARGET", "seen"
            raise ConfigError(
                f"MODEL.TAGCLIP.{key} is 'novel', which reads where unseen pixels are and breaks "
                f"the {self.setting} protocol; set it to {other!r}, or allow it with "
                "DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS True"
            )
        _ = self.training


def _carried(name: str) -> str:
    return f"the vocabulary of {name} in DATASETS.VOCABULARIES"


def requested_vocabulary(
    batched_inputs: Sequence[Mapping[str, Any]], default: Vocabulary
) -> Vocabulary:
    """The one vocabulary that the inputs of a batch ask for.

    Args:
        batched_inputs: "vocabulary" of each, if any: a `Vocabulary` or a registered dataset.
        default: what the others ask for.

    Raises:
        VocabularyError: they ask for different ones.
    """
    asked = [item.get("vocabulary", default) for item in batched_inputs]
    # The split in a dataset's own json says nothing about this model's training.
    asked = [
        replace(Vocabulary.from_metadata(v), seen=None) if isinstance(v, str) else v for v in asked
    ]
    if any(other != asked[0] for other in asked):
        raise VocabularyError(
            f"batch of {len(asked)} inputs: found several vocabularies "
            f"({', '.join(sorted({v.name for v in asked}))}), expected one; "
            "evaluate each dataset on its own"
        )
    return asked[0]


def resolve_seen(vocabulary: Vocabulary, trained: Vocabulary, policy: str) -> Vocabulary:
    """Decide which classes of a vocabulary are seen, unless that is known already.

    Args:
        vocabulary: any class list.
        trained: the classes that the model is trained on.
        policy: "match" by names, or all classes alike "seen" or "unseen".

    Raises:
        ConfigError: the policy is unknown.
    """
    if vocabulary.seen is not None:
        return vocabulary
    check_value("MODEL.TAGCLIP.TEST.UNKNOWN_CLASSES", policy)
    if policy == "match":
        return vocabulary.match_seen(trained)
    return vocabulary.with_seen([policy == "seen"] * len(vocabulary))
