"""The vocabulary json: what it may hold, and one clear line about everything else."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.toy_dataset import vocabulary_tree, write_json

from tagclip.errors import VocabularyError
from tagclip.structures.vocabulary import Vocabulary

NAMES = ["cat", "dog", "dining table", "sky"]


def _tree(**extra: Any) -> dict:
    return vocabulary_tree(NAMES, unseen=["sky"], **extra)


def _with_class(index: int, **fields: Any) -> dict:
    tree = copy.deepcopy(_tree())
    tree["classes"][index].update(fields)
    return tree


def _with_split(**split: Any) -> dict:
    return _tree(splits={"zs": split})


BAD_FILES = {
    "not an object": ([1, 2], "found a list"),
    "no format": (_tree(format=None), "'format' is missing"),
    "no name": (_tree(name=None), "'name' is missing"),
    "no classes": (_tree(classes=None), "'classes' is missing"),
    "other format": (_tree(format=2), "format is 2, expected 1"),
    "format true": (_tree(format=True), "format is True, expected 1"),
    "blank name": (_tree(name=" "), "name is ' '"),
    "misspelt key": (_tree(default_splt="zs"), "did you mean default_split?"),
    "classes an object": (_tree(classes={"cat": 0}), "expected a list of objects"),
    "class a text": (_tree(classes=["cat"]), "classes[0]: found a str"),
    "class without id": (_tree(classes=[{"name": "cat"}]), "classes[0]: 'id' is missing"),
    "class with unknown key": (_with_class(1, colour=[0, 0, 0]), "did you mean color?"),
    "empty list": (_tree(classes=[], splits={"zs": {"unseen": []}}), "class list is empty"),
    "empty class name": (_with_class(1, name=""), "is empty"),
    "blank class name": (_with_class(1, name=" \n"), "is empty"),
    "class name a number": (_with_class(1, name=7), "is 7, expected a text"),
    "duplicate name": (_with_class(1, name="cat"), "'cat' = 'cat'"),
    "duplicate in case and space": (_with_class(1, name=" CAT "), "'cat' = 'CAT'"),
    "duplicate in unicode form": (_with_class(1, name="ｃａｔ"), "'cat' = 'ｃａｔ'"),
    "duplicate id": (_with_class(1, id=0), "ids 0 belong to more than one class"),
    "negative id": (_with_class(1, id=-1), "id is -1"),
    "fractional id": (_with_class(1, id=1.5), "id is 1.5"),
    "boolean id": (_with_class(1, id=True), "id is True"),
    "text id": (_with_class(1, id="1"), "id is '1'"),
    "id over 16 bits": (_with_class(1, id=65536), "id is 65536"),
    "id is ignore": (_with_class(1, id=255), "ignore_label 255 is also the id of 'dog'"),
    "ignore label negative": (_tree(ignore_label=-1), "ignore_label is -1"),
    "ignore label a text": (_tree(ignore_label="255"), "ignore_label is '255'"),
    "ids a number": (_with_class(1, ids="1"), "ids is ('1',), expected a list of integers"),
    "ids empty": (_with_class(1, ids=[]), "ids is an empty list"),
    "ids without id": (_with_class(1, ids=[7, 8]), "ids is [7, 8], expected 1, its id, among"),
    "ids repeated": (_with_class(1, ids=[1, 1]), "expected 1, its id, among them and each value"),
    "ids over 16 bits": (_with_class(1, ids=[1, 65536]), "integers in 0..65535"),
    "ids of two classes": (_with_class(1, ids=[1, 0]), "ids 0 belong to more than one class"),
    "ids and ignore": (_with_class(1, ids=[1, 255]), "ignore_label 255 is also the id of 'dog'"),
    "ignore labels empty": (_tree(ignore_label=[]), "ignore_label is an empty list"),
    "ignore labels repeated": (_tree(ignore_label=[9, 9]), "ignore_label is [9, 9], expected each"),
    "second ignore label an id": (_tree(ignore_label=[255, 1]), "ignore_label 1 is also the id"),
    "second ignore label a text": (_tree(ignore_label=[255, "0"]), "ignore_label is '0'"),
    "ignore color a text": (_tree(ignore_color="red"), "ignore_color is 'red', expected"),
    "ignore color too short": (_tree(ignore_color=[1, 2]), "ignore_color is [1, 2], expected"),
    "ignore color of a class": (
        _with_class(1, color=[1, 2, 3]) | {"ignore_color": [[0, 0, 0], [1, 2, 3]]},
        "ignore_color [1, 2, 3] is also the color of 'dog'",
    ),
    "labels unknown": (_tree(labels="rgb"), "labels is 'rgb', expected 'ids' or 'colors'"),
    "labels colors without": (_tree(labels="colors"), "found 4 classes without color"),
    "prompts a text": (_with_class(1, prompts="dog"), "expected a list of texts"),
    "empty prompt": (_with_class(1, prompts=["dog", ""]), "is empty"),
    "duplicate prompt": (_with_class(1, prompts=["TV", "tv "]), "'TV' = 'tv'"),
    "color too short": (_with_class(1, color=[1, 2]), "color is [1, 2]"),
    "color out of range": (_with_class(1, color=[1, 2, 256]), "color is [1, 2, 256]"),
    "splits a list": (_tree(splits=[]), "expected an object of splits"),
    "split empty": (_with_split(), "neither 'unseen' nor 'seen' is given"),
    "split unknown key": (_with_split(unsen=["sky"]), "did you mean unseen?"),
    "split unknown name": (_with_split(unseen=["skyy"]), "'skyy', no class; did you mean sky?"),
    "split a text": (_with_split(unseen="sky"), "expected a list of class names"),
    "split name twice": (_with_split(unseen=["sky", "Sky"]), "more than once"),
    "split overlap": (
        _with_split(seen=["cat", "dog", "dining table"], unseen=["sky", "dog"]),
        "'dog' is both seen and unseen",
    ),
    "split incomplete": (
        _with_split(seen=["cat", "dog"], unseen=["sky"]),
        "'dining table' is neither seen nor unseen",
    ),
    "unknown default": (_tree(default_split="other"), "no split 'other'; it has 'zs'"),
    "default a list": (_tree(default_split=["zs"]), "expected a name"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_json_is_refused_in_one_line_with_its_path(case: str, tmp_path: Path) -> None:
    tree, expected = BAD_FILES[case]
    path = write_json(tmp_path / "bad.json", tree)
    with pytest.raises(VocabularyError, match=re.escape(expected)) as caught:
        Vocabulary.from_json(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 1, "format": 1}', b"[" * 100_000])
def test_unreadable_json_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(VocabularyError, match="not a readable json file") as caught:
        Vocabulary.from_json(path)
    assert "\n" not in str(caught.value)


def test_missing_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"none\.json: no such vocabulary json"):
        Vocabulary.from_json(tmp_path / "none.json")


def test_values_and_colours_are_read_as_documented(tmp_path: Path) -> None:
    tree = _tree(ignore_label=[255, 9], ignore_color=[7, 7, 7], labels="colors")
    tree["classes"] = [
        entry | {"color": [index, 0, 0]} for index, entry in enumerate(tree["classes"])
    ]
    tree["classes"][1] = {"ids": [5, 1], "name": "dog", "color": [9, 9, 9]}
    vocabulary = Vocabulary.from_json(write_json(tmp_path / "toy.json", tree))
    dog = vocabulary.classes[1]
    assert (dog.id, dog.ids, dog.color) == (5, (5, 1), (9, 9, 9))
    assert vocabulary.classes[0].ids == (0,)
    assert (vocabulary.ignored, vocabulary.ignore_label) == ((255, 9), 255)
    assert (vocabulary.ignore_colors, vocabulary.labels) == (((7, 7, 7),), "colors")
    tree["ignore_color"] = [[7, 7, 7], [8, 8, 8]]
    path = write_json(tmp_path / "two.json", tree)
    assert Vocabulary.from_json(path).ignore_colors == ((7, 7, 7), (8, 8, 8))


def test_json_is_read_as_documented(tmp_path: Path) -> None:
    tree = _with_class(0, prompts=["cat", "kitten"], color=[1, 2, 3])
    tree["splits"]["other"] = {"seen": ["Dining  Table"]}
    tree["ignore_label"] = 0xFFFF
    path = write_json(tmp_path / "toy.json", tree)
    default, other = Vocabulary.from_json(path), Vocabulary.from_json(path, "other")
    assert default.names == NAMES
    assert default.prompts == [("cat", "kitten"), ("dog",), ("dining table",), ("sky",)]
    assert default.classes[0].color == (1, 2, 3)
    assert (default.name, default.split, default.ignore_label) == ("toy", "zs", 0xFFFF)
    assert default.unseen_names == ["sky"]
    assert other.seen == (False, False, True, False)
    assert other.split == "other"
    assert default.fingerprint == other.fingerprint
    assert default.partition_fingerprint != other.partition_fingerprint
    with pytest.raises(VocabularyError, match="no split 'third'; it has 'other', 'zs'"):
        Vocabulary.from_json(path, "third")


def test_json_without_splits_leaves_the_partition_open(tmp_path: Path) -> None:
    path = write_json(tmp_path / "open.json", _tree(splits=None, default_split=None))
    vocabulary = Vocabulary.from_json(path)
    assert vocabulary.seen is None
    for read in ("seen_mask", "num_seen", "unseen_names"):
        with pytest.raises(VocabularyError, match="nothing says which classes are seen"):
            getattr(vocabulary, read)
    with pytest.raises(VocabularyError, match="nothing says"):
        vocabulary.restrict("seen")


def test_a_byte_order_mark_changes_nothing(tmp_path: Path) -> None:
    path = write_json(tmp_path / "toy.json", _tree())
    plain = Vocabulary.from_json(path)
    path.write_text("\ufeff" + path.read_text())
    assert Vocabulary.from_json(path) == plain
