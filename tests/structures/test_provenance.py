"""Provenance: which classes had masks, under whatever name, and what nobody may decide."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagclip.structures import ClassEntry, Provenance, Stage, Vocabulary
from tagclip.structures.provenance import _same_labels

VOCABULARIES = "tagclip/data/datasets/vocabularies"
WORDS = st.sampled_from(["cat", "dog", "tv monitor", "wall", "red ball", "blue ball", "犬", "Löwe"])
# How people spell one name: only these differences count for nothing.
SPELLINGS = (str, str.upper, str.title, lambda w: w.replace(" ", ""), lambda w: w.replace(" ", "-"))


def after(*masks: str | tuple[str, ...], others: tuple[str, ...] = ()) -> Provenance:
    """Of a model that was trained once."""
    names = [(m,) if isinstance(m, str) else m for m in masks]
    return Provenance().then(Stage(masks=tuple(names), others=tuple((o,) for o in others)))


def trained(provenance: Provenance, *names: str) -> list[str]:
    vocabulary = Vocabulary.from_names(names)
    return [n for n, t in zip(names, provenance.trained(vocabulary), strict=True) if t]


@given(st.lists(WORDS, unique=True), st.lists(WORDS, unique=True, min_size=1), st.data())
def test_spelling_does_not_hide_a_class(
    masks: list[str], asked: list[str], data: st.DataObject
) -> None:
    spelt = [data.draw(st.sampled_from(SPELLINGS))(word) for word in masks]
    expected = [word for word in asked if word in masks]
    assert trained(after(*spelt), *asked) == expected


def test_a_synonym_on_either_side_is_the_class() -> None:
    assert trained(after(("cat", "kitten")), "Kitten", "dog") == ["Kitten"]
    entries = (ClassEntry(0, "pet", ("dog", "cat")), ClassEntry(1, "bird"))
    assert after("cat").trained(Vocabulary("pets", entries)) == (True, False)


@pytest.mark.parametrize(
    ("masks", "asked"),
    [
        ("tv monitor", "tv"),
        ("television receiver", "tvmonitor"),
        ("sofa", "couch"),
        ("aeroplane", "airplane"),
        ("building-other", "Building"),
        ("windowpane", "window-other"),
    ],
)
def test_labels_of_known_datasets_for_one_thing(masks: str, asked: str) -> None:
    assert trained(after(masks), asked) == [asked]
    assert trained(after(asked), masks) == [masks]


def test_known_labels_keep_the_classes_of_every_dataset_apart(repository: Path) -> None:
    groups = _same_labels()
    for path in (repository / VOCABULARIES).glob("*.json"):
        vocabulary, found = Vocabulary.from_json(path), Counter()
        for entry in vocabulary.classes:
            found.update({groups[key] for key in _compacts(entry.name) if key in groups})
        assert max(found.values(), default=1) == 1, path.name


def _compacts(name: str) -> list[str]:
    """A reference of its own: names of known datasets are plain English."""
    return ["".join(c for c in name.lower() if c.isalnum())]


def test_all_stages_count_and_only_human_masks_do() -> None:
    model = after("cat").then(Stage(masks=(("dog",),), pseudo_labels=("sky",), positions=("sky",)))
    assert trained(model, "cat", "dog", "sky") == ["cat", "dog"]
    assert trained(Provenance(), "cat") == []


def test_similar_names_are_a_question_and_no_answer() -> None:
    vocabulary = Vocabulary.from_names(["table", "cats", "carpet", "person"])
    model = after("diningtable", "cat", "car", "airplane")
    assert trained(model, *vocabulary.names) == []
    pairs = model.similar(vocabulary, vocabulary.names)
    assert pairs == [("table", "diningtable"), ("cats", "cat")]
    assert model.similar(vocabulary, ["cats"]) == [("cats", "cat")]


def test_a_list_that_holds_both_has_told_them_apart() -> None:
    vocabulary = Vocabulary.from_names(["table", "cats"])
    model = after("diningtable", "cat", others=("Table",))
    assert model.similar(vocabulary, vocabulary.names) == [("cats", "cat")]


TEXTS = st.text(max_size=5)
NAMES = st.lists(st.lists(TEXTS, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple)
LISTS = st.lists(TEXTS, max_size=3).map(tuple)
STAGES = st.builds(
    Stage, TEXTS, TEXTS, TEXTS, TEXTS, LISTS, NAMES, NAMES, LISTS, LISTS, TEXTS, TEXTS
)


@given(st.builds(Provenance, st.lists(STAGES, max_size=3).map(tuple), st.booleans()))
def test_json_and_back(provenance: Provenance) -> None:
    text = json.dumps(provenance.to_json())
    assert Provenance.from_json(json.loads(text)) == provenance


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS | st.just([]),
    lambda t: (
        st.lists(t, max_size=3)
        | st.dictionaries(
            st.sampled_from(["stages", "is_complete", "masks", "setting", "positions", "x"]), t
        )
    ),
    max_leaves=12,
)


@given(TREES)
def test_whatever_a_file_holds_is_read_or_a_value_error(tree: object) -> None:
    try:
        found = Provenance.from_json(tree)
    except ValueError:
        return
    assert found.to_json() == found.from_json(found.to_json()).to_json()


def test_history_says_what_is_missing() -> None:
    stage = Stage("inductive", "zs", "pets", masks=(("cat",),))
    assert Provenance().history == "CLIP"
    assert Provenance().then(stage).history == "CLIP > inductive pets:zs"
    assert Provenance(is_complete=False).then(stage).history == (
        "ancestry unknown > inductive pets:zs"
    )
