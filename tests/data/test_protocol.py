"""Protocol: which classes a run trains on, asks for and reports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from helpers.toy_dataset import forget, toy_config, vocabulary_tree, write_json

from tagclip.data import (
    dataset_vocabulary,
    protocol_summary,
    query_vocabulary,
    register_zero_shot_sem_seg,
    training_vocabulary,
    validate_protocol,
)
from tagclip.data.protocol import reads_novel_masks
from tagclip.errors import ConfigError, DatasetError

NAMES = ["cat", "dog", "sky", "tree"]


@pytest.fixture(autouse=True)
def _datasets(tmp_path: Path) -> Iterator[None]:
    """toy_train, toy_val: one json; other: another class list; open: no splits."""
    before = set(DatasetCatalog.list())
    splits = {"zs": {"unseen": ["sky"]}, "half": {"seen": ["cat", "sky"]}}
    trees = {
        "toy": vocabulary_tree(NAMES, splits=splits),
        "other": vocabulary_tree(["bird", "Cat", "grass"], unseen=["grass"], name="other"),
        "open": vocabulary_tree(["bird", "cat", "sky"], splits=None, default_split=None),
        "copy": vocabulary_tree(NAMES, splits=splits, name="copy"),
        "moved": vocabulary_tree(NAMES, splits={"zs": {"unseen": ["tree"]}}),
    }
    for name, tree in trees.items():
        path = write_json(tmp_path / f"{name}.json", tree)
        for dataset in ("toy_train", "toy_val") if name == "toy" else (name,):
            register_zero_shot_sem_seg(dataset, tmp_path / "i", tmp_path / "l", path)
    yield
    forget(*(set(DatasetCatalog.list()) - before))


def _config(*opts: Any, train: tuple[str, ...] = ("toy_train",)) -> CfgNode:
    return toy_config("DATASETS.TRAIN", train, *opts)


SUPERVISED = ("DATASETS.ZERO_SHOT.SETTING", "supervised")
TRANSDUCTIVE = ("DATASETS.ZERO_SHOT.SETTING", "transductive")
HALF = ("DATASETS.ZERO_SHOT.SPLIT", "half")


def test_inductive_trains_on_seen_classes_and_asks_for_all() -> None:
    cfg = _config()
    assert training_vocabulary(cfg).names == ["cat", "dog", "tree"]
    assert training_vocabulary(cfg).seen_mask.all()
    for name in ("toy_train", "toy_val"):
        assert dataset_vocabulary(cfg, name).unseen_names == ["sky"]
        assert query_vocabulary(cfg, name) == dataset_vocabulary(cfg, name)


def test_the_split_is_a_key() -> None:
    cfg = _config(*HALF)
    assert training_vocabulary(cfg).names == ["cat", "sky"]
    assert dataset_vocabulary(cfg, "toy_val").split == "half"
    assert query_vocabulary(cfg, "toy_val").unseen_names == ["dog", "tree"]


def test_supervised_trains_on_all_and_reports_the_partition() -> None:
    cfg = _config(*SUPERVISED)
    assert training_vocabulary(cfg).names == NAMES
    assert training_vocabulary(cfg).seen_mask.all()
    assert query_vocabulary(cfg, "toy_val").seen_mask.all()
    assert dataset_vocabulary(cfg, "toy_val").unseen_names == ["sky"]


def test_transductive_asks_all_classes_and_keeps_the_partition() -> None:
    cfg = _config(*TRANSDUCTIVE)
    assert training_vocabulary(cfg).names == NAMES
    assert training_vocabulary(cfg).unseen_names == ["sky"]
    assert query_vocabulary(cfg, "toy_val") == dataset_vocabulary(cfg, "toy_val")
    # Without labels, a class of the training list is not seen on another dataset either.
    assert query_vocabulary(cfg, "open").seen == (False, True, False)


def test_transductive_needs_seen_and_unseen_classes(tmp_path: Path) -> None:
    path = write_json(tmp_path / "all.json", vocabulary_tree(NAMES))
    register_zero_shot_sem_seg("all", tmp_path / "i", tmp_path / "l", path)
    with pytest.raises(ConfigError, match="split 'zs' has 4 seen and 0 unseen classes"):
        validate_protocol(_config(*TRANSDUCTIVE, train=("all",)))


def test_other_datasets_use_their_own_split_for_reporting() -> None:
    cfg = _config(*HALF)
    assert dataset_vocabulary(cfg, "other").split == "zs"
    assert dataset_vocabulary(cfg, "other").unseen_names == ["grass"]
    assert dataset_vocabulary(cfg, "open").seen is None


@pytest.mark.parametrize(
    ("policy", "other", "open_"),
    [
        ("match", (False, True, False), (False, True, False)),
        ("seen", (True,) * 3, (True,) * 3),
        ("unseen", (False,) * 3, (False,) * 3),
    ],
)
def test_other_class_lists_are_matched_by_name(policy: str, other: tuple, open_: tuple) -> None:
    cfg = _config("MODEL.TAGCLIP.TEST.UNKNOWN_CLASSES", policy)
    assert query_vocabulary(cfg, "other").seen == other
    assert query_vocabulary(cfg, "open").seen == open_
    # The training data's own list has a partition: the policy is not for it.
    assert query_vocabulary(cfg, "toy_val").unseen_names == ["sky"]


def test_a_shared_prompt_does_not_move_the_partition_of_the_training_data(tmp_path: Path) -> None:
    tree = vocabulary_tree(["sofa", "chair"], unseen=["chair"])
    tree["classes"][0]["prompts"] = ["sofa", "chair"]
    path = write_json(tmp_path / "shared.json", tree)
    register_zero_shot_sem_seg("shared", tmp_path / "i", tmp_path / "l", path)
    assert query_vocabulary(_config(train=("shared",)), "shared").unseen_names == ["chair"]


def test_several_training_datasets_must_agree() -> None:
    assert len(training_vocabulary(_config(train=("toy_train", "toy_val", "copy")))) == 3
    for second in ("other", "moved"):
        cfg = _config(train=("toy_train", second))
        with pytest.raises(ConfigError, match=rf"toy_train \(4 classes.* {second} .* differ"):
            training_vocabulary(cfg)
        with pytest.raises(ConfigError, match="differ"):
            validate_protocol(cfg)


def test_missing_split_of_a_training_dataset() -> None:
    with pytest.raises(ConfigError, match=r"SPLIT is 'none'.*toy_train.* it has 'half', 'zs'"):
        validate_protocol(_config("DATASETS.ZERO_SHOT.SPLIT", "none"))
    with pytest.raises(ConfigError, match=r"SPLIT is empty and .*open\.json .*no default_split"):
        validate_protocol(_config(train=("open",)))
    # Supervised training needs no partition.
    assert len(training_vocabulary(_config(*SUPERVISED, train=("open",)))) == 3


def test_no_training_dataset() -> None:
    with pytest.raises(ConfigError, match=r"DATASETS\.TRAIN is empty"):
        validate_protocol(_config(train=()))


def test_unregistered_dataset() -> None:
    with pytest.raises(DatasetError, match="'nothing' is not registered"):
        validate_protocol(_config(train=("nothing",)))


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("DATASETS.ZERO_SHOT.SETTING", "'inductive' or 'transductive' or 'supervised'"),
        ("MODEL.TAGCLIP.TRUSTY.TARGET", "'seen' or 'novel'"),
        ("MODEL.TAGCLIP.SELF_TRAINING.REGION", "'unlabeled' or 'novel'"),
        ("MODEL.TAGCLIP.TEST.UNKNOWN_CLASSES", "'match' or 'seen' or 'unseen'"),
    ],
)
def test_unknown_values_name_the_choices(key: str, choices: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: found 'other', expected {choices}"):
        validate_protocol(_config(key, "other"))


def test_novel_target_needs_permission() -> None:
    novel = ("MODEL.TAGCLIP.TRUSTY.TARGET", "novel")
    with pytest.raises(ConfigError, match="ALLOW_NOVEL_MASKS True"):
        validate_protocol(_config(*novel))
    validate_protocol(_config(*novel, "DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", True))
    validate_protocol(_config(*novel, "MODEL.TAGCLIP.TRUSTY.ENABLED", False))


def test_novel_region_needs_permission() -> None:
    novel = (*TRANSDUCTIVE, "MODEL.TAGCLIP.SELF_TRAINING.REGION", "novel")
    with pytest.raises(ConfigError, match=r"SELF_TRAINING\.REGION is 'novel'.* 'unlabeled'"):
        validate_protocol(_config(*novel))
    allowed = _config(*novel, "DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", True)
    validate_protocol(allowed)
    assert reads_novel_masks(allowed)
    # The key has no effect in the other settings.
    validate_protocol(_config("MODEL.TAGCLIP.SELF_TRAINING.REGION", "novel"))


def test_threshold_is_a_score() -> None:
    with pytest.raises(ConfigError, match=r"THRESHOLD: found 50\.0, expected a number from 0 to 1"):
        validate_protocol(_config("MODEL.TAGCLIP.SELF_TRAINING.THRESHOLD", 50.0))


def test_summary_states_the_protocol() -> None:
    assert protocol_summary(_config()) == (
        "inductive, split zs: 3 seen / 1 unseen; unseen labels dropped in the mapper; "
        "trusty target = seen"
    )
    off = _config(*SUPERVISED, "MODEL.TAGCLIP.TRUSTY.ENABLED", False)
    assert protocol_summary(off) == "supervised, 4 classes, all with labels; no trusty token"
    novel = protocol_summary(_config("MODEL.TAGCLIP.TRUSTY.TARGET", "novel"))
    assert "trusty target = novel (reads where unseen pixels are" in novel
    assert protocol_summary(_config(*TRANSDUCTIVE)) == (
        "transductive, split zs: 3 seen / 1 unseen; unseen labels dropped in the mapper; "
        "pseudo-labels on unlabelled pixels, gated, from score 0.3; trusty target = seen"
    )
    region = _config(*TRANSDUCTIVE, "MODEL.TAGCLIP.SELF_TRAINING.REGION", "novel")
    assert "pseudo-labels on unseen pixels (reads where they are)" in protocol_summary(region)
