"""The zero-shot protocol: which classes a run trains on and which it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from tagclip.config.checks import check_config, check_value
from tagclip.data.datasets.from_config import apply_bad_sample_policy, register_folder_datasets
from tagclip.errors import ConfigError, VocabularyError
from tagclip.structures.vocabulary import Vocabulary

__all__ = [
    "dataset_vocabulary",
    "monitors_pseudo_labels",
    "protocol_summary",
    "query_vocabulary",
    "reads_novel_masks",
    "requested_vocabulary",
    "resolve_seen",
    "training_vocabulary",
    "validate_protocol",
]


def dataset_vocabulary(cfg: CfgNode, dataset_name: str) -> Vocabulary:
    """Full class list of a dataset with the partition for reporting.

    The partition is the split `DATASETS.ZERO_SHOT.SPLIT`; a dataset that is not trained on and
    lacks it uses its default split, or leaves the partition open if it has none.

    Raises:
        ConfigError: a training dataset lacks the split.
        DatasetError, VocabularyError: the dataset is not registered, or its json is inconsistent.
    """
    register_folder_datasets(cfg)
    apply_bad_sample_policy(cfg)
    split = cfg.DATASETS.ZERO_SHOT.SPLIT
    default = Vocabulary.from_metadata(dataset_name)
    is_trained = dataset_name in cfg.DATASETS.TRAIN
    if not split:
        if is_trained and default.seen is None and _setting(cfg) != "supervised":
            raise ConfigError(
                f"DATASETS.ZERO_SHOT.SPLIT is empty and {_json_of(dataset_name)} (dataset "
                f"{dataset_name}) has no default_split; name one of its splits"
            )
        return default
    try:
        return Vocabulary.from_metadata(dataset_name, split)
    except VocabularyError as error:
        if is_trained:
            raise ConfigError(
                f"DATASETS.ZERO_SHOT.SPLIT is {split!r}, which training dataset {dataset_name} "
                f"lacks ({error}); name one of its splits"
            ) from error
        return default


def training_vocabulary(cfg: CfgNode) -> Vocabulary:
    """The classes that training asks for; those called seen have labels.

    Inductive: the seen classes of the split. Transductive: all classes, with the partition of
    the split. Supervised: all classes, all of them seen.

    Raises:
        ConfigError: the setting is unknown or does not suit the split, or DATASETS.TRAIN is
            empty or disagrees.
    """
    full, setting = _trained_vocabulary(cfg), _setting(cfg)
    if setting == "supervised":
        return full.with_seen([True] * len(full))
    if setting == "inductive":
        return full.restrict("seen")
    if not 0 < full.num_seen < len(full):
        raise ConfigError(
            f"DATASETS.ZERO_SHOT.SETTING is 'transductive', but split {full.split!r} has "
            f"{full.num_seen} seen and {len(full) - full.num_seen} unseen classes, expected some "
            "of both; name another split or setting"
        )
    return full


def query_vocabulary(cfg: CfgNode, dataset_name: str) -> Vocabulary:
    """The classes that evaluation asks for, where seen means: the model was trained on it.

    With the class list of the training data, the partition is that of training. With another
    one, `MODEL.TAGCLIP.TEST.UNKNOWN_CLASSES` decides: by names that training has seen ("match"),
    or all classes alike.
    """
    vocabulary = dataset_vocabulary(cfg, dataset_name)
    trained = _trained_vocabulary(cfg)
    if vocabulary.fingerprint == trained.fingerprint:
        if _setting(cfg) == "supervised":
            return replace(vocabulary, seen=(True,) * len(vocabulary), split="")
        return replace(vocabulary, seen=trained.seen, split=trained.split)
    policy = cfg.MODEL.TAGCLIP.TEST.UNKNOWN_CLASSES
    return resolve_seen(replace(vocabulary, seen=None), training_vocabulary(cfg), policy)


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


def protocol_summary(cfg: CfgNode) -> str:
    """One line: setting, split, numbers of classes, fate of unseen labels, trusty target."""
    full, setting = _trained_vocabulary(cfg), _setting(cfg)
    if setting == "supervised":
        classes = f"{len(full)} classes, all with labels"
    else:
        classes = (
            f"split {full.split}: {full.num_seen} seen / {len(full) - full.num_seen} unseen; "
            "unseen labels dropped in the mapper"
        )
    if setting == "transductive":
        classes += f"; {_pseudo_label_summary(cfg)}"
    trusty = cfg.MODEL.TAGCLIP.TRUSTY
    target = f"trusty target = {trusty.TARGET}" if trusty.ENABLED else "no trusty token"
    if trusty.ENABLED and trusty.TARGET == "novel":
        target += f" (reads where unseen pixels are, outside the {setting} protocol)"
    return f"{setting}, {classes}; {target}"


def _pseudo_label_summary(cfg: CfgNode) -> str:
    rule = cfg.MODEL.TAGCLIP.SELF_TRAINING
    if rule.REGION == "novel":
        return "pseudo-labels on unseen pixels (reads where they are)"
    gated = "gated" if rule.GATE else "ungated"
    compared = ", compared with the unseen pixels in the log" * monitors_pseudo_labels(cfg)
    return f"pseudo-labels on unlabelled pixels, {gated}, from score {rule.THRESHOLD:g}{compared}"


def reads_novel_masks(cfg: CfgNode) -> bool:
    """Whether training reads where the pixels of unseen classes are (never which class)."""
    tagclip = cfg.MODEL.TAGCLIP
    if tagclip.TRUSTY.ENABLED and tagclip.TRUSTY.TARGET == "novel":
        return True
    return _setting(cfg) == "transductive" and tagclip.SELF_TRAINING.REGION == "novel"


def monitors_pseudo_labels(cfg: CfgNode) -> bool:
    """Whether the log says how many pseudo-labels are on unseen pixels: nothing learns from it."""
    return _setting(cfg) == "transductive" and cfg.DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS


def validate_protocol(cfg: CfgNode) -> None:
    """Check all keys, those of the protocol together, before anything expensive is built.

    Raises:
        ConfigError: a value is unknown, keys contradict each other, or datasets disagree.
        DatasetError, VocabularyError: see `dataset_vocabulary`.
    """
    check_config(cfg)
    tagclip = cfg.MODEL.TAGCLIP
    if reads_novel_masks(cfg) and not cfg.DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS:
        key, other = "SELF_TRAINING.REGION", "unlabeled"
        if tagclip.TRUSTY.ENABLED and tagclip.TRUSTY.TARGET == "novel":
            key, other = "TRUSTY.TARGET", "seen"
        raise ConfigError(
            f"MODEL.TAGCLIP.{key} is 'novel', which reads where unseen pixels are and breaks the "
            f"{_setting(cfg)} protocol; set it to {other!r}, or allow it with "
            "DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS True"
        )
    training_vocabulary(cfg)


def _setting(cfg: CfgNode) -> str:
    # Vocabularies are also made of configs that nothing has checked.
    check_value("DATASETS.ZERO_SHOT.SETTING", cfg.DATASETS.ZERO_SHOT.SETTING)
    return cfg.DATASETS.ZERO_SHOT.SETTING


def _trained_vocabulary(cfg: CfgNode) -> Vocabulary:
    """Full class list of the training datasets, with the partition of the split."""
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise ConfigError("DATASETS.TRAIN is empty; name the dataset(s) that the model learns from")
    first, *others = [dataset_vocabulary(cfg, name) for name in names]
    for name, other in zip(names[1:], others, strict=True):
        if other.partition_fingerprint != first.partition_fingerprint:
            raise ConfigError(
                f"DATASETS.TRAIN: {names[0]} ({len(first)} classes, {_json_of(names[0])}) and "
                f"{name} ({len(other)} classes, {_json_of(name)}) differ in classes or split; "
                "train on datasets with the same vocabulary"
            )
    return first


def _json_of(dataset_name: str) -> str:
    return str(MetadataCatalog.get(dataset_name).vocabulary)
