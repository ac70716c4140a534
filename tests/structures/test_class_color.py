"""Colours of classes: from the name alone, near the colour that the name says, far from others."""

from __future__ import annotations

import colorsys
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagclip.data.datasets.builtin import vocabulary_json
from tagclip.projects.minibench import VOCABULARY_JSON
from tagclip.structures.class_color import _oklab, _palette, alike_colors, name_color
from tagclip.structures.vocabulary import ClassEntry, Vocabulary
from tagclip.utils.class_names import name_key

# (degrees around, at most so many to either side).
HUES = {"red": (0, 15), "yellow": (60, 10), "green": (122, 15), "blue": (222, 15)}
NOUNS = ("ball", "flag", "fence", "dice", "board", "car", "犬", "wooden door")


words = st.text(st.characters(categories=("L", "Nd")), min_size=1, max_size=8)


@given(st.lists(words, min_size=1, max_size=9, unique_by=name_key), st.randoms())
def test_a_colour_depends_on_the_name_alone(names: list[str], random: object) -> None:
    expected = dict(zip(names, Vocabulary.from_names(names).colors.tolist(), strict=True))
    shuffled = [*names, "one more"]
    random.shuffle(shuffled)
    colors = Vocabulary.from_names(shuffled, seen=[True] * len(shuffled)).colors.tolist()
    found = dict(zip(shuffled, colors, strict=True))
    assert found == expected | {"one more": found["one more"]}


@pytest.mark.parametrize(
    "spelling", ["Dining Table", "dining-table", "dining_table", "diningtable"]
)
def test_spelling_does_not_count(spelling: str) -> None:
    assert name_color(spelling) == name_color("dining table") != name_color("dinner table")


@pytest.mark.parametrize(("color", "noun"), [*itertools.product(HUES, NOUNS)])
def test_a_name_with_a_colour_gets_it(color: str, noun: str) -> None:
    middle, reach = HUES[color]
    for name in (f"{color} {noun}", f"{noun} in {color}", color):
        hue, saturation, _ = colorsys.rgb_to_hsv(*(value / 255 for value in name_color(name)))
        assert abs((hue * 360 - middle + 180) % 360 - 180) <= reach and saturation > 0.2, name


@pytest.mark.parametrize(
    ("name", "color"),
    [("sand", "#e2ca76"), ("brick", "#a03623"), ("stone", "#ada587"), ("water", "#0e87cc"),
     ("light blue", "#95d0fc"), ("Forest-Green", "#06470c")],
)  # fmt: skip
def test_a_name_that_is_a_colour_is_that_colour(name: str, color: str) -> None:
    assert "#{:02x}{:02x}{:02x}".format(*name_color(name)) == color


def test_longer_names_of_colours_go_first() -> None:
    light, plain = name_color("light blue car"), name_color("blue car")
    assert light != plain and sum(light) > sum(name_color("blue"))


def test_distances_are_those_of_oklab() -> None:
    """Values of the page that defines it, from XYZ, and of its sRGB example."""
    found = _oklab(np.array([[255, 255, 255], [255, 0, 0], [0, 0, 0]]))
    expected = [[1, 0, 0], [0.627955, 0.224863, 0.125846], [0, 0, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    lab = _oklab(np.array(_palette()))
    pairs = [float(np.linalg.norm(a - b)) for a, b in itertools.combinations(lab, 2)]
    assert min(pairs) > 0.07 and len(lab) == 128


# How many classes have a colour that another one comes close to: these carry numbers.
ALIKE = {"voc20": 0, "context59": 10, "coco_stuff171": 115, "ade150": 94}


@pytest.mark.parametrize(("name", "count"), ALIKE.items())
def test_how_many_classes_of_a_list_need_a_number(name: str, count: int) -> None:
    names = Vocabulary.from_json(vocabulary_json(name)).names
    colors = np.array([name_color(name) for name in names])
    assert alike_colors(colors).sum() == count
    distances = [[np.linalg.norm(a - b) for b in _oklab(colors)] for a in _oklab(colors)]
    loop = [sum(d < 0.045 for d in row) > 1 for row in distances]
    assert alike_colors(colors).tolist() == loop


def test_all_classes_of_minibench_can_be_told_apart_and_are_no_fixed_colours() -> None:
    vocabulary = Vocabulary.from_json(VOCABULARY_JSON)
    assert not alike_colors(vocabulary.colors).any() and len(vocabulary) == 24
    assert all(entry.color is None for entry in vocabulary.classes)


def test_given_colours_win_and_are_handed_on_by_name() -> None:
    given = Vocabulary("v", (ClassEntry(7, "Cat", color=(1, 2, 3)), ClassEntry(9, "dog")))
    assert given.colors.tolist() == [[1, 2, 3], list(name_color("dog"))]
    own = Vocabulary("w", (ClassEntry(0, "dog"), ClassEntry(1, "cat")))
    assert own.match_colors(given).colors.tolist() == [list(name_color("dog")), [1, 2, 3]]
    other = Vocabulary("w", (ClassEntry(0, "cat", color=(9, 9, 9)),))
    assert other.match_colors(given) == other
