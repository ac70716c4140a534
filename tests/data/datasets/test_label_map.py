"""What label values mean: published facts, round trips, and telling class orders apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.miniature_trees import COCO_HOLES, COCO_VALUES, class_names, context_ids, random_label
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tagclip.data.datasets.builtin import vocabulary_json
from tagclip.data.datasets.label_map import LabelMap, recognize_order
from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import Vocabulary

# Label map, class list, and the lowest and highest raw value of a class.
KINDS = [
    ("voc2012", "voc20", 1, 20),
    ("coco_stuff", "coco_stuff171", 0, 181),
    ("coco_stuff_converted", "coco_stuff171", 0, 170),
    ("coco_stuff_seen_first", "coco_stuff171", 0, 170),
    ("context459", "context459", 1, 459),
    ("context59_alphabetical", "context59", 0, 58),
    ("context59_voc_first", "context59", 0, 58),
    ("context60_alphabetical", "context60", 0, 59),
    ("context60_voc_first", "context60", 0, 59),
    ("ade150", "ade150", 1, 150),
    ("ade847", "ade847", 6, 3156),
]
ORDERS59 = ("context59_alphabetical", "context59_voc_first")
ORDERS = (*ORDERS59, "context60_alphabetical", "context60_voc_first")


def label_map(name: str, vocabulary: str, background: str = "") -> LabelMap:
    return LabelMap.read(name, Vocabulary.from_json(vocabulary_json(vocabulary)), background)


def committed_tree(name: str, repository: Path) -> dict:
    folder = repository / "tagclip" / "data" / "datasets" / "label_maps"
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize(("name", "vocabulary", "low", "high"), KINDS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_raw_and_back(
    name: str, vocabulary: str, low: int, high: int, data: st.DataObject, repository: Path
) -> None:
    """ids -> raw values -> ids, with the raw values looked up in the json by name."""
    tree, names = committed_tree(name, repository), class_names(vocabulary)
    raw_of = {text: int(value) for value, text in tree["classes"].items()}
    assert sorted(raw_of) == sorted(names)
    assert (min(raw_of.values()), max(raw_of.values())) == (low, high)
    ignored = tree["ignored"] if isinstance(tree["ignored"], list) else [0]
    shape = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
    ids = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(-1, len(names) - 1)))
    raw = np.vectorize(lambda i: raw_of[names[i]] if i >= 0 else ignored[-1], otypes=[int])(ids)
    convert = label_map(name, vocabulary)
    ignore = 65535 if vocabulary in ("context459", "ade847") else 255
    result = convert(raw, "x.png")
    np.testing.assert_array_equal(result, np.where(ids < 0, ignore, ids))
    assert result.dtype == (np.uint16 if ignore > 255 else np.uint8)


def test_coco_values_are_those_of_the_published_lists() -> None:
    convert = label_map("coco_stuff", "coco_stuff171")
    np.testing.assert_array_equal(convert(np.array([COCO_VALUES]), "x")[0], np.arange(171))
    assert (convert(np.array([[*COCO_HOLES, 255]]), "x") == 255).all()
    # novel_cls.npy of SPNet and CaGNet, in values of stuffthingmaps.
    novel = [20, 24, 32, 33, 40, 56, 86, 99, 105, 123, 144, 147, 148, 168, 171]
    vocabulary = Vocabulary.from_json(vocabulary_json("coco_stuff171"))
    assert [convert.class_names[value] for value in novel] == vocabulary.unseen_names
    names = [label_map("coco_stuff_seen_first", "coco_stuff171").class_names[i] for i in range(171)]
    assert names[156:] == vocabulary.unseen_names
    assert names[:156] == [n for n in class_names("coco_stuff171") if n not in names[156:]]


def test_context_values_are_those_of_mmsegmentation() -> None:
    """The 59 raw values of its converter, which numbers them in ascending order."""
    values = [2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104]
    values += [105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295]
    values += [296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427]
    values += [440, 445, 454, 458]
    raw = np.arange(460)[None]
    expected59, expected60 = np.full((1, 460), 255), np.zeros((1, 460))
    expected59[0, values], expected60[0, values] = np.arange(59), np.arange(1, 60)
    np.testing.assert_array_equal(label_map("context459", "context59")(raw, "x"), expected59)
    with_background = label_map("context459", "context60", "background")
    np.testing.assert_array_equal(with_background(raw, "x"), expected60)


def test_the_other_context_order_has_voc_first() -> None:
    names = label_map("context59_voc_first", "context59").class_names
    voc = ["table" if name == "diningtable" else name for name in class_names("voc20")]
    assert [names[value] for value in range(20)] == voc
    # ZS3Net's unseen classes in its own numbers (with background) and in alphabetical ones.
    unseen = Vocabulary.from_json(vocabulary_json("context59")).unseen_names
    zs3 = label_map("context60_voc_first", "context60").class_names
    assert {zs3[i] for i in (1, 3, 4, 8, 10, 14, 18, 20, 32, 38)} == set(unseen)
    mine = label_map("context60_alphabetical", "context60").class_names
    assert {mine[i] for i in (1, 7, 8, 15, 20, 25, 32, 34, 49, 55)} == set(unseen)


def test_object_numbers_of_the_full_ade20k() -> None:
    convert = label_map("ade847", "ade847")
    raw = np.array([[2978, 312, 2420, 2855, 0, 1, 6655]])
    assert convert(raw, "x").tolist() == [[0, 1, 2, 3, 65535, 65535, 65535]]


@pytest.mark.parametrize("value", [21, 254, -1, 300])
def test_a_value_of_no_class_is_refused(value: int) -> None:
    label = np.zeros((3, 4), dtype=np.int32)
    label[2, 1] = value
    with pytest.raises(DatasetError, match=rf"^a\.png: value {value} at \(1,2\) is none of voc"):
        label_map("voc2012", "voc20")(label, "a.png")


def _order_names(order: str) -> tuple[list[str], int]:
    """Class names without background, and the id of the first."""
    names = label_map(order, order[:9]).class_names
    first = int(order.startswith("context60"))
    return [names[i] for i in range(first, len(names))], first


def _context_pairs(order: str, num: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    raw = [random_label(range(460), seed, (60, 60)) for seed in range(num)]
    return [(context_ids(label, *_order_names(order)), label) for label in raw]


@pytest.mark.parametrize("order", ORDERS)
def test_each_context_order_is_recognized(order: str) -> None:
    candidates = {name: label_map(name, "context59") for name in ORDERS}
    reference = label_map("context459", "context59")
    assert recognize_order(_context_pairs(order), reference, candidates) == order
    assert recognize_order(_context_pairs(order), reference, candidates, order) == order
    other = ORDERS[ORDERS.index(order) - 1]
    with pytest.raises(DatasetError, match=f"--order is {other}, but .* are {order} ") as error:
        recognize_order(_context_pairs(order), reference, candidates, other)
    assert "\n" not in str(error.value)


def test_recognition_needs_evidence() -> None:
    candidates = {name: label_map(name, "context59") for name in ORDERS59}
    reference = label_map("context459", "context59")
    with pytest.raises(DatasetError, match="cannot tell the class order"):
        recognize_order([], reference, candidates)
    assert recognize_order([], reference, candidates, ORDERS59[1]) == ORDERS59[1]
    # aeroplane is the first class of both orders.
    aeroplane = (np.zeros((4, 4), dtype=int), np.full((4, 4), 2))
    with pytest.raises(DatasetError, match="of 0 pixels that decide"):
        recognize_order([aeroplane], reference, candidates)


def test_shifted_labels_are_refused() -> None:
    candidates = {name: label_map(name, "context59") for name in ORDERS59}
    reference = label_map("context459", "context59")
    pairs = [((ids + 1) % 59, raw) for ids, raw in _context_pairs(ORDERS59[0])]
    for claimed in ("", ORDERS59[0]):
        with pytest.raises(DatasetError, match="no known class order .* shifted"):
            recognize_order(pairs, reference, candidates, claimed)


def test_labels_of_another_image_are_refused() -> None:
    candidates = {name: label_map(name, "context59") for name in ORDERS59}
    pair = (np.zeros((4, 4), dtype=int), np.zeros((4, 5), dtype=int))
    with pytest.raises(DatasetError, match="not of the same image"):
        recognize_order([pair], label_map("context459", "context59"), candidates)
