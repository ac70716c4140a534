"""Vocabulary: validation, partition, label table, fingerprint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagclip.errors import DatasetError, VocabularyError
from tagclip.structures.vocabulary import ClassEntry, Vocabulary

NAMES = ["cat", "dog", "dining table", "sky"]

names_lists = st.lists(
    st.text("abcdefghij", min_size=1, max_size=4), min_size=1, max_size=12, unique=True
)


@st.composite
def vocabularies(draw: st.DrawFn, resolved: bool = True) -> Vocabulary:
    names = draw(names_lists)
    ids = draw(
        st.lists(
            st.integers(0, 400).filter(lambda i: i != 255),
            min_size=len(names),
            max_size=len(names),
            unique=True,
        )
    )
    seen = tuple(draw(st.booleans()) for _ in names) if resolved else None
    entries = tuple(ClassEntry(i, n) for i, n in zip(ids, names, strict=True))
    return Vocabulary("random", entries, seen)


def test_unregistered_dataset_is_refused() -> None:
    with pytest.raises(DatasetError, match="'no_such_dataset' is not registered"):
        Vocabulary.from_metadata("no_such_dataset")


def test_names_are_data() -> None:
    names = ["{}", "100%", "小猫", "🐈", "new\nline"]
    assert Vocabulary.from_names(names).names == ["{}", "100%", "小猫", "🐈", "new line"]


@pytest.mark.parametrize("flags", [(True,), (1, 0), ("a", "b"), (True, None)])
def test_flags_must_be_one_truth_value_per_class(flags: tuple) -> None:
    entries = (ClassEntry(0, "a"), ClassEntry(1, "b"))
    with pytest.raises(VocabularyError, match="expected 2 truth values"):
        Vocabulary("v", entries, flags)


def test_bare_text_is_no_class_list() -> None:
    with pytest.raises(VocabularyError, match="expected a list of names"):
        Vocabulary.from_names("cat")


def test_with_seen_takes_flags_or_names() -> None:
    vocabulary = Vocabulary.from_names(NAMES)
    expected = (True, False, False, True)
    assert vocabulary.with_seen([True, False, False, True]).seen == expected
    assert vocabulary.with_seen(np.array(expected)).seen == expected
    assert vocabulary.with_seen(["SKY", "cat"]).seen == expected
    assert vocabulary.with_seen([]).seen == (False,) * 4
    assert Vocabulary.from_names(NAMES, seen=["sky", "cat"]).seen == expected
    with pytest.raises(VocabularyError, match="seen names 'bird', no class"):
        vocabulary.with_seen(["bird"])
    with pytest.raises(VocabularyError, match="expected 4 truth values"):
        vocabulary.with_seen([True])
    # Its keys would be the seen ones.
    with pytest.raises(VocabularyError, match="seen: found {'cat': False}, expected truth values"):
        vocabulary.with_seen({"cat": False})


def test_restrict_keeps_order_and_ids() -> None:
    vocabulary = Vocabulary.from_names(NAMES, seen=["dog", "sky"])
    seen, unseen = vocabulary.restrict("seen"), vocabulary.restrict("unseen")
    assert [(e.id, e.name) for e in seen.classes] == [(1, "dog"), (3, "sky")]
    assert [(e.id, e.name) for e in unseen.classes] == [(0, "cat"), (2, "dining table")]
    assert seen.seen_mask.all() and not unseen.seen_mask.any()
    with pytest.raises(VocabularyError, match="no class is unseen"):
        seen.restrict("unseen")
    with pytest.raises(VocabularyError, match="expected 'seen' or 'unseen'"):
        vocabulary.restrict("all")


def test_match_seen_uses_names_and_prompts_of_seen_classes_only() -> None:
    training = Vocabulary(
        "training",
        (
            ClassEntry(0, "tvmonitor", ("tv", "Television")),
            ClassEntry(1, "sofa", ("sofa", "couch")),
            ClassEntry(2, "bird"),
        ),
        seen=(True, True, False),
    )
    query = Vocabulary(
        "query",
        (
            ClassEntry(0, "television"),
            ClassEntry(1, "seat", ("Couch",)),
            ClassEntry(2, "bird"),
            ClassEntry(3, "TVmonitor"),
            ClassEntry(4, "sofa bed"),
        ),
    )
    assert query.match_seen(training).seen == (True, True, False, True, False)
    with pytest.raises(VocabularyError, match="nothing says"):
        query.match_seen(Vocabulary.from_names(["bird"]))


@pytest.mark.parametrize(("count", "ignore", "dtype"), [(255, 255, np.uint8), (256, 256, np.int32)])
def test_targets_of_large_vocabularies(count: int, ignore: int, dtype: type) -> None:
    vocabulary = Vocabulary.from_names([f"c{i}" for i in range(count)])
    assert (vocabulary.ignore_index, vocabulary.target_dtype) == (ignore, dtype)
    lut = vocabulary.label_lut()
    assert lut[: len(vocabulary)].tolist() == list(range(count))
    assert lut[vocabulary.ignore_label] == ignore


@given(vocabularies(), st.data())
def test_label_lut_by_brute_force(source: Vocabulary, data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(source.names), min_size=1, unique=True))
    target = Vocabulary.from_names([name.upper() for name in kept])
    lut = source.label_lut(target)
    assert lut.dtype == np.int32
    assert len(lut) == max(255, *(entry.id for entry in source.classes)) + 1
    by_id = {entry.id: entry.name for entry in source.classes}
    for value, index in enumerate(lut.tolist()):
        if value in by_id and by_id[value] in kept:
            assert target.names[index] == by_id[value].upper()
        elif value in by_id or value == 255:
            assert index == target.ignore_index
        else:
            assert index == -1


def test_several_values_of_a_class_and_of_unlabelled_pixels() -> None:
    classes = (ClassEntry(0, "sand"), ClassEntry(1, "crack", ids=(1, 255)))
    vocabulary = Vocabulary("mask", classes, ignore_label=254, more_ignored=(3,))
    expected = np.full(256, -1)
    expected[[0, 1, 255, 254, 3]] = [0, 1, 1, 255, 255]
    np.testing.assert_array_equal(vocabulary.label_lut(), expected)
    crack = Vocabulary.from_names(["crack"])
    expected[[0, 1, 255]] = [255, 0, 0]
    np.testing.assert_array_equal(vocabulary.label_lut(crack), expected)
    plain = Vocabulary("mask", (classes[0], ClassEntry(1, "crack")), ignore_label=254)
    prints = {plain.fingerprint, vocabulary.fingerprint}
    prints |= {Vocabulary("mask", classes, ignore_label=254).fingerprint}
    assert len(prints) == 3


@given(vocabularies())
def test_label_lut_round_trip(vocabulary: Vocabulary) -> None:
    ids = np.array([entry.id for entry in vocabulary.classes])
    np.testing.assert_array_equal(vocabulary.label_lut()[ids], np.arange(len(ids)))


@given(vocabularies())
def test_parts_partition_the_classes(vocabulary: Vocabulary) -> None:
    parts = []
    for part, wanted in (("seen", True), ("unseen", False)):
        if wanted in vocabulary.seen:
            parts += vocabulary.restrict(part).classes
    assert sorted(parts, key=lambda entry: entry.id) == sorted(
        vocabulary.classes, key=lambda entry: entry.id
    )
    assert vocabulary.num_seen + len(vocabulary.unseen_names) == len(vocabulary)


@given(vocabularies(), vocabularies(resolved=False))
def test_match_seen_is_name_overlap(training: Vocabulary, query: Vocabulary) -> None:
    seen = set(training.names) - set(training.unseen_names)
    assert query.match_seen(training).seen == tuple(name in seen for name in query.names)
    assert training.match_seen(training) == training


@settings(max_examples=50)
@given(vocabularies(), st.data())
def test_fingerprint_sees_every_change_but_the_name(vocab: Vocabulary, data: st.DataObject) -> None:
    entries = list(vocab.classes)
    same = Vocabulary("another name", tuple(entries), vocab.seen, "split", vocab.ignore_label)
    assert same.fingerprint == vocab.fingerprint
    assert same.partition_fingerprint == vocab.partition_fingerprint

    index = data.draw(st.integers(0, len(entries) - 1))
    old = entries[index]
    changes = [
        [*entries, ClassEntry(500, "one more")],
        [*entries[:index], ClassEntry(501, old.name), *entries[index + 1 :]],
        [*entries[:index], ClassEntry(old.id, "renamed"), *entries[index + 1 :]],
        [*entries[:index], ClassEntry(old.id, old.name, ("prompt",)), *entries[index + 1 :]],
    ]
    if len(entries) > 1:
        changes += [entries[1:], entries[::-1]]
    prints = {Vocabulary("v", tuple(classes)).fingerprint for classes in changes}
    prints.add(Vocabulary("v", tuple(entries), ignore_label=600).fingerprint)
    assert vocab.fingerprint not in prints
    assert len(prints) == len(changes) + 1

    flipped = vocab.with_seen([flag != (i == index) for i, flag in enumerate(vocab.seen)])
    assert flipped.fingerprint == vocab.fingerprint
    assert flipped.partition_fingerprint != vocab.partition_fingerprint


@given(st.data())
def test_two_lists_joined_have_every_name_once(data: st.DataObject) -> None:
    """The first as it is, then those of the second that it lacks; a prompt of it is a name."""
    words = [f"word {number}" for number in range(8)]
    some = st.lists(st.sampled_from(words), min_size=1, unique=True)
    ones, others = data.draw(some), data.draw(some)
    flags = {name: data.draw(st.booleans()) for name in words}
    first = Vocabulary.from_names(ones).with_seen([not flags[name] for name in ones])
    second = Vocabulary.from_names(others).with_seen([flags[name] for name in others])
    extra = [name for name in others if name not in ones]
    found = first.joined(second)
    assert found.names == [*ones, *extra]
    assert found.seen == (*(not flags[name] for name in ones), *(flags[name] for name in extra))
    assert [entry.id for entry in found.classes] == list(range(len(found)))
    prompted = replace(
        first, classes=tuple(replace(e, prompts=tuple(words)) for e in first.classes)
    )
    assert prompted.joined(second).names == ones


def test_the_colours_that_label_files_are_read_by() -> None:
    def found(colors: list[tuple[int, int, int] | None], **more: Any) -> str:
        pairs = zip((3, 1), "ab", colors, strict=True)
        classes = tuple(ClassEntry(value, name, color=color) for value, name, color in pairs)
        return Vocabulary("v", classes, **more).color_fingerprint

    one, two = (1, 2, 3), (4, 5, 6)
    assert found([None, None]) == found([one, two], labels="ids") == ""
    others = [
        found([one, two]),
        found([two, one]),
        found([one, None]),
        found([one, two], labels="colors"),
        found([one, two], ignore_colors=((0, 0, 0),)),
    ]
    assert len({"", *others}) == 6 and found([one, two]) == others[0]
