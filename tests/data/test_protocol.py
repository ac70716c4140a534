"""Protocol: which classes a run trains on, asks for and reports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from helpers.toy_dataset import forget, toy_config, vocabulary_tree, write_json

from tagclip.data import Protocol, register_zero_shot_sem_seg
from tagclip.errors import ConfigError, DatasetError, TagCLIPError

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
    assert Protocol(cfg).training.names == ["cat", "dog", "tree"]
    assert Protocol(cfg).training.seen_mask.all()
    for name in ("toy_train", "toy_val"):
        assert Protocol(cfg).dataset(name).unseen_names == ["sky"]
        assert Protocol(cfg).asked(name) == Protocol(cfg).dataset(name)


def test_another_list_keeps_the_colours_that_training_gives(tmp_path: Path) -> None:
    """In the evaluation of another dataset a class looks as in that of its own."""
    tree = vocabulary_tree(["cat", "dog"], unseen=["dog"])
    tree["classes"][0]["color"] = [1, 2, 3]
    path = write_json(tmp_path / "colored.json", tree)
    register_zero_shot_sem_seg("colored", tmp_path / "i", tmp_path / "l", path)
    asked, plain = (Protocol(_config(train=(name,))).asked("other") for name in ("colored", "copy"))
    assert asked.colors[1].tolist() == [1, 2, 3] != plain.colors[1].tolist()
    assert asked.colors[[0, 2]].tolist() == plain.colors[[0, 2]].tolist()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("toy_train", "{}")], r"the vocabulary of toy_train in DATASETS\.VOCABULARIES: "),
        # Nobody asks for it, and yet it is not what was meant.
        ([("elsewhere", "not a json")], r"the vocabulary of elsewhere in DATASETS\.VOCABULARIES"),
        ([("toy_val", None)] * 2, "VOCABULARIES: found several of 'toy_val', expected one; leave"),
    ],
)
def test_carried_class_lists_that_cannot_be_meant(
    entries: list[tuple[str, str | None]], message: str
) -> None:
    good = json.dumps(vocabulary_tree(NAMES))
    rows = [{"dataset": name, "json": good if text is None else text} for name, text in entries]
    protocol = Protocol(_config("DATASETS.VOCABULARIES", rows))
    with pytest.raises(TagCLIPError, match=message):
        protocol.asked("toy_train")


def test_the_split_is_a_key() -> None:
    cfg = _config(*HALF)
    assert Protocol(cfg).training.names == ["cat", "sky"]
    assert Protocol(cfg).dataset("toy_val").split == "half"
    assert Protocol(cfg).asked("toy_val").unseen_names == ["dog", "tree"]


def test_supervised_trains_on_all_and_reports_the_partition() -> None:
    cfg = _config(*SUPERVISED)
    assert Protocol(cfg).training.names == NAMES
    assert Protocol(cfg).training.seen_mask.all()
    assert Protocol(cfg).asked("toy_val").seen_mask.all()
    assert Protocol(cfg).dataset("toy_val").unseen_names == ["sky"]


def test_transductive_asks_all_classes_and_keeps_the_partition() -> None:
    cfg = _config(*TRANSDUCTIVE)
    assert Protocol(cfg).training.names == NAMES
    assert Protocol(cfg).training.unseen_names == ["sky"]
    assert Protocol(cfg).asked("toy_val") == Protocol(cfg).dataset("toy_val")
    # Without labels, a class of the training list is not seen on another dataset either.
    assert Protocol(cfg).asked("open").seen == (False, True, False)


def test_transductive_needs_seen_and_unseen_classes(tmp_path: Path) -> None:
    path = write_json(tmp_path / "all.json", vocabulary_tree(NAMES))
    register_zero_shot_sem_seg("all", tmp_path / "i", tmp_path / "l", path)
    with pytest.raises(ConfigError, match="split 'zs' has 4 seen and 0 unseen classes"):
        Protocol(_config(*TRANSDUCTIVE, train=("all",))).check()


def test_other_datasets_use_their_own_split_for_reporting() -> None:
    cfg = _config(*HALF)
    assert Protocol(cfg).dataset("other").split == "zs"
    assert Protocol(cfg).dataset("other").unseen_names == ["grass"]
    assert Protocol(cfg).dataset("open").seen is None


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
    assert Protocol(cfg).asked("other").seen == other
    assert Protocol(cfg).asked("open").seen == open_
    # The training data's own list has a partition: the policy is not for it.
    assert Protocol(cfg).asked("toy_val").unseen_names == ["sky"]


def test_a_shared_prompt_does_not_move_the_partition_of_the_training_data(tmp_path: Path) -> None:
    tree = vocabulary_tree(["sofa", "chair"], unseen=["chair"])
    tree["classes"][0]["prompts"] = ["sofa", "chair"]
    path = write_json(tmp_path / "shared.json", tree)
    register_zero_shot_sem_seg("shared", tmp_path / "i", tmp_path / "l", path)
    assert Protocol(_config(train=("shared",))).asked("shared").unseen_names == ["chair"]


def test_several_training_datasets_must_agree() -> None:
    assert len(Protocol(_config(train=("toy_train", "toy_val", "copy"))).training) == 3
    for second in ("other", "moved"):
        cfg = _config(train=("toy_train", second))
        with pytest.raises(ConfigError, match=rf"toy_train \(4 classes.* {second} .* differ"):
            len(Protocol(cfg).training)
        with pytest.raises(ConfigError, match="differ"):
            Protocol(cfg).check()


def test_missing_split_of_a_training_dataset() -> None:
    with pytest.raises(ConfigError, match=r"SPLIT is 'none'.*toy_train.* it has 'half', 'zs'"):
        Protocol(_config("DATASETS.ZERO_SHOT.SPLIT", "none")).check()


@pytest.mark.parametrize("setting", ["inductive", "transductive"])
@pytest.mark.parametrize("split", ["", "zs"])
def test_a_list_without_splits_names_the_line_to_add(
    setting: str, split: str, tmp_path: Path
) -> None:
    opts = ("DATASETS.ZERO_SHOT.SETTING", setting, "DATASETS.ZERO_SHOT.SPLIT", split)
    protocol = Protocol(_config(*opts, train=("open",)))
    # Looking at the data needs no partition.
    assert not protocol.has_partition and protocol.dataset("open").names == ["bird", "cat", "sky"]
    with pytest.raises(ConfigError) as caught:
        protocol.check()
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'open.json'} (dataset open) has no splits")
    assert "\n" not in message
    # Either remedy ends the trouble.
    line = re.search(r"set (DATASETS\.ZERO_SHOT\.SETTING) (\w+);", message)
    assert line is not None
    supervised = Protocol(_config(*opts, *line.groups(), train=("open",)))
    supervised.check()
    assert supervised.training.seen == supervised.asked("open").seen == (True,) * 3
    text = message.split("such as ")[1]
    tree = json.loads((tmp_path / "open.json").read_text()) | json.loads(f"{{{text}}}")
    write_json(tmp_path / "open.json", tree)
    mended = Protocol(_config(*opts[:2], train=("open",)))
    mended.check()
    assert mended.has_partition and mended.full.unseen_names == ["sky"]


def test_a_list_of_one_class_is_not_told_to_call_it_unseen(tmp_path: Path) -> None:
    tree = vocabulary_tree(["cat"], splits=None, default_split=None)
    path = write_json(tmp_path / "one.json", tree)
    register_zero_shot_sem_seg("one", tmp_path / "i", tmp_path / "l", path)
    with pytest.raises(ConfigError, match="set DATASETS.ZERO_SHOT.SETTING supervised$"):
        _ = Protocol(_config(train=("one",))).training
    assert Protocol(_config(*SUPERVISED, train=("one",))).training.names == ["cat"]


def test_splits_without_a_default_are_named(tmp_path: Path) -> None:
    tree = json.loads((tmp_path / "toy.json").read_text())
    del tree["default_split"]
    write_json(tmp_path / "toy.json", tree)
    with pytest.raises(ConfigError, match="no default_split; set") as caught:
        Protocol(_config()).check()
    lines = re.findall(r"(DATASETS\.ZERO_SHOT\.SPLIT) (\w+)(?: or |$)", str(caught.value))
    assert [split for _, split in lines] == ["zs", "half"]
    for line in lines:
        Protocol(_config(*line)).check()


def test_no_training_dataset() -> None:
    with pytest.raises(ConfigError, match=r"DATASETS\.TRAIN: found no dataset, .*--config-file"):
        Protocol(_config(train=())).check()


def test_unregistered_dataset() -> None:
    with pytest.raises(DatasetError, match="'nothing' is not registered"):
        Protocol(_config(train=("nothing",))).check()


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
        Protocol(_config(key, "other")).check()


def test_novel_target_needs_permission() -> None:
    novel = ("MODEL.TAGCLIP.TRUSTY.TARGET", "novel")
    with pytest.raises(ConfigError, match="ALLOW_NOVEL_MASKS True"):
        Protocol(_config(*novel)).check()
    Protocol(_config(*novel, "DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", True)).check()
    Protocol(_config(*novel, "MODEL.TAGCLIP.TRUSTY.ENABLED", False)).check()


def test_novel_region_needs_permission() -> None:
    novel = (*TRANSDUCTIVE, "MODEL.TAGCLIP.SELF_TRAINING.REGION", "novel")
    with pytest.raises(ConfigError, match=r"SELF_TRAINING\.REGION is 'novel'.* 'unlabeled'"):
        Protocol(_config(*novel)).check()
    allowed = _config(*novel, "DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", True)
    Protocol(allowed).check()
    assert Protocol(allowed).reads_novel_masks
    # The key has no effect in the other settings.
    Protocol(_config("MODEL.TAGCLIP.SELF_TRAINING.REGION", "novel")).check()


def test_threshold_is_a_score() -> None:
    with pytest.raises(ConfigError, match=r"THRESHOLD: found 50\.0, expected a number from 0 to 1"):
        Protocol(_config("MODEL.TAGCLIP.SELF_TRAINING.THRESHOLD", 50.0)).check()


def test_summary_states_the_protocol() -> None:
    assert Protocol(_config()).summary == (
        "inductive, split zs: 3 seen / 1 unseen; unseen labels dropped in the mapper; "
        "trusty target = seen"
    )
    off = _config(*SUPERVISED, "MODEL.TAGCLIP.TRUSTY.ENABLED", False)
    assert Protocol(off).summary == "supervised, 4 classes, all with labels; no trusty token"
    novel = Protocol(_config("MODEL.TAGCLIP.TRUSTY.TARGET", "novel")).summary
    assert "trusty target = novel (reads where unseen pixels are" in novel
    assert Protocol(_config(*TRANSDUCTIVE)).summary == (
        "transductive, split zs: 3 seen / 1 unseen; unseen labels dropped in the mapper; "
        "pseudo-labels on unlabelled pixels, gated, from score 0.3; trusty target = seen"
    )
    region = _config(*TRANSDUCTIVE, "MODEL.TAGCLIP.SELF_TRAINING.REGION", "novel")
    assert "pseudo-labels on unseen pixels (reads where they are)" in Protocol(region).summary


def test_later_changes_of_the_config_do_not_matter() -> None:
    cfg = _config()
    protocol = Protocol(cfg)
    cfg.merge_from_list([*SUPERVISED, *HALF])
    assert protocol.setting == "inductive" and protocol.full.split == "zs"
    assert protocol.training is protocol.training


def test_nothing_is_read_before_it_is_asked_for() -> None:
    cfg = _config(train=("nothing",))
    cfg.DATASETS.ZERO_SHOT.SETTING = "other"
    protocol = Protocol(cfg)
    with pytest.raises(ConfigError, match="SETTING: found 'other'"):
        protocol.check()
