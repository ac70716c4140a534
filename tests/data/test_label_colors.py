"""Colour tables, and label files that are read by the colours of a class list."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tagclip.data.label_colors import ColorTable, color_table
from tagclip.data.label_io import LabelColorError, check_label, read_label
from tagclip.errors import DatasetError, VocabularyError
from tagclip.structures.vocabulary import ClassEntry, Vocabulary

COLORS = ((194, 178, 128), (220, 20, 60), (0, 0, 0))
VOCABULARY = Vocabulary(
    "mine",
    tuple(ClassEntry(i, n, color=c) for i, n, c in zip((0, 7, 2), "abc", COLORS, strict=True)),
    ignore_colors=((255, 255, 255),),
)
IDS = np.array([[0, 7, 2], [2, 255, 7]], np.uint8)
TABLE = np.zeros((256, 3), np.uint8)
TABLE[[0, 7, 2, 255]] = [*COLORS, (255, 255, 255)]
RGB = TABLE[IDS]


def _write(path: Path, pixels: np.ndarray, palette: np.ndarray | None = None) -> Path:
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.tobytes())
    image.save(path)
    return path


@settings(deadline=None)
@given(st.data())
def test_look_up_is_a_loop_over_colours(data: st.DataObject) -> None:
    color = st.tuples(*[st.sampled_from([0, 1, 127, 128, 255])] * 3)
    colors = data.draw(st.lists(color, min_size=1, max_size=8, unique=True))
    values = data.draw(st.lists(st.integers(0, 300), min_size=len(colors), max_size=len(colors)))
    pixels = data.draw(st.lists(color, min_size=6, max_size=6))
    rgb = np.array(pixels, np.uint8).reshape(2, 3, 3)
    table = ColorTable(colors, values)
    assert table.unknown not in values
    expected = np.full((2, 3), table.unknown)
    for one, value in zip(colors, values, strict=True):
        expected[(rgb == np.array(one)).all(axis=2)] = value
    np.testing.assert_array_equal(table.look_up(rgb), expected)
    unknown = [pixel for pixel in pixels if pixel not in colors]
    assert table.unknown_colors(rgb) == {pixel: unknown.count(pixel) for pixel in set(unknown)}


def test_unknown_colours_are_listed_with_the_nearest() -> None:
    table = ColorTable([(0, 0, 0), (200, 10, 10), (0, 0, 250)], [0, 1, 2], ["'a'", "'b'", "'c'"])
    rgb = np.array([[(190, 0, 0), (0, 0, 251), (190, 0, 0), (0, 0, 0)]], np.uint8)
    assert table.unknown_text(rgb) == (
        "2 unknown colours: [190, 0, 0] (2 pixels, nearest is [200, 10, 10] of 'b'), [0, 0, 251] "
        "(1 pixels, nearest is [0, 0, 250] of 'c'); add them in the vocabulary json, as "
        '"color" of a class or "ignore_color"'
    )
    blends = np.arange(1, 25, dtype=np.uint8).reshape(1, 8, 3)
    text = table.unknown_text(blends)
    assert "8 unknown colours" in text and "and 3 more; the file was resized" in text


def test_one_colour_of_two_classes_is_refused() -> None:
    classes = (ClassEntry(0, "a", color=(1, 2, 3)), ClassEntry(1, "b", color=(1, 2, 3)))
    with pytest.raises(VocabularyError, match=r"'twins': color \[1, 2, 3\] is of 'a' and of 'b'"):
        color_table(Vocabulary("twins", classes))
    assert color_table(Vocabulary.from_names(["a"])) is None


@pytest.mark.parametrize("labels", ["", "colors"])
@pytest.mark.parametrize("kind", ["rgb", "rgba", "palette", "tif"])
def test_colours_become_ids(kind: str, labels: str, tmp_path: Path) -> None:
    vocabulary, path = replace(VOCABULARY, labels=labels), tmp_path / "a.png"
    if kind == "rgba":
        _write(path, np.dstack([RGB, np.full(IDS.shape, 255, np.uint8)]))
    elif kind == "palette":
        # Indices that are no ids of the list.
        places = np.array([[11, 12, 13], [13, 14, 12]], np.uint8)
        palette = np.full((256, 3), 9, np.uint8)
        palette[11:15] = TABLE[[0, 7, 2, 255]]
        _write(path, places, palette)
    else:
        _write(path if kind == "rgb" else (path := tmp_path / "a.tif"), RGB)
    np.testing.assert_array_equal(read_label(path, vocabulary), IDS)


def test_ids_in_three_equal_channels(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.png", np.repeat(IDS[..., None], 3, axis=2))
    plain = Vocabulary("plain", tuple(ClassEntry(i, f"c{i}") for i in (0, 7, 2)))
    for vocabulary in (None, plain, replace(plain, labels="ids"), VOCABULARY):
        # The gray of value 0 is the colour of 'c'.
        if vocabulary is VOCABULARY:
            with pytest.raises(LabelColorError, match="value 0 at .* 'a', its colour .* is 'c'"):
                read_label(path, vocabulary)
        else:
            np.testing.assert_array_equal(read_label(path, vocabulary), IDS)


def test_a_palette_that_contradicts_is_never_guessed(tmp_path: Path) -> None:
    palette = TABLE.copy()
    palette[[0, 7]] = TABLE[[7, 0]]
    path = _write(tmp_path / "a.png", IDS, palette)
    with pytest.raises(LabelColorError, match=r"values and colours disagree: value 0 at \(0,0\)"):
        read_label(path, VOCABULARY)
    np.testing.assert_array_equal(read_label(path, replace(VOCABULARY, labels="ids")), IDS)
    swapped = np.array([[7, 0, 2], [2, 255, 0]], np.uint8)
    np.testing.assert_array_equal(read_label(path, replace(VOCABULARY, labels="colors")), swapped)
    # Colours that mean nothing here, or the same, settle nothing.
    for other in (TABLE, np.full((256, 3), 77, np.uint8)):
        np.testing.assert_array_equal(read_label(_write(path, IDS, other), VOCABULARY), IDS)


def test_gray_files_are_colours_only_on_request(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.png", np.array([[0, 255]], np.uint8))
    assert read_label(path, VOCABULARY).tolist() == [[0, 255]]
    assert read_label(path, replace(VOCABULARY, labels="colors")).tolist() == [[2, 255]]
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(path)
    assert read_label(path, VOCABULARY).tolist() == [[0, 300]]
    with pytest.raises(LabelColorError, match='more than 8 bits per pixel.*"labels": "ids"'):
        read_label(path, replace(VOCABULARY, labels="colors"))


def test_refusals_say_what_ends_them(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.png", RGB)
    plain = Vocabulary.from_names(["a", "b"])
    cases = [
        (None, "label file has colours, expected label values; save the ids as gray PNG"),
        (plain, 'vocabulary custom has none; give every class its "color"'),
        (
            replace(VOCABULARY, labels="ids"),
            "labels is 'ids'; save the ids as gray PNG, or, if all label",
        ),
    ]
    for vocabulary, text in cases:
        with pytest.raises(LabelColorError, match=re.escape(text)):
            read_label(path, vocabulary)
    # Only where colours are needed.
    twins = replace(VOCABULARY, classes=(*VOCABULARY.classes, ClassEntry(9, "d", color=COLORS[0])))
    with pytest.raises(VocabularyError, match="is of 'a' and of 'd'"):
        read_label(path, twins)
    palette = _write(tmp_path / "p.png", IDS, TABLE)
    np.testing.assert_array_equal(read_label(palette, twins), IDS)
    clear = np.dstack([RGB, np.full(IDS.shape, 255, np.uint8)])
    clear[0, :2, 3] = 0
    _write(path, clear)
    with pytest.raises(DatasetError, match=r"2 pixels of the label are transparent.*ignore_color"):
        read_label(path, VOCABULARY)


_PERMUTED = TABLE.copy()
_PERMUTED[[0, 7]] = TABLE[[7, 0]]
KINDS = {
    "gray": (IDS, None),
    "16 bits": (IDS.astype(np.uint16), None),
    "palette": (IDS, TABLE),
    "permuted palette": (IDS, _PERMUTED),
    "colours": (RGB, None),
    "equal channels": (np.repeat(IDS[..., None], 3, axis=2), None),
}


@pytest.mark.parametrize("colored", [True, False])
@pytest.mark.parametrize("kinds", list(combinations_with_replacement(KINDS, 2)), ids=" and ".join)
def test_labels_need_no_more_than_two_steps(
    kinds: tuple[str, str], colored: bool, tmp_path: Path
) -> None:
    """Whichever of the two a reader chooses, no message leads back to the other."""
    paths = [_write(tmp_path / f"{n}.png", *KINDS[kind]) for n, kind in enumerate(kinds)]
    plain = tuple(ClassEntry(entry.id, entry.name) for entry in VOCABULARY.classes)
    start = VOCABULARY if colored else replace(VOCABULARY, classes=plain, ignore_colors=())
    states = [start]
    while states:
        vocabulary = states.pop()
        message = ""
        for path in paths:
            try:
                check_label(read_label(path, vocabulary), path, vocabulary, IDS.shape)
            except DatasetError as error:
                message = message or str(error)
        choices = set(re.findall(r'"labels": "(\w+)"', message))
        if "if all label files" in message and len(set(kinds)) > 1:
            choices = set()
        assert not message or choices or re.search('save|"color"|add them', message)
        # A choice is made once.
        assert not (choices and vocabulary.labels and len(set(kinds)) > 1), message
        states += [replace(vocabulary, labels=choice) for choice in choices - {vocabulary.labels}]
        assert len(states) < 9


def test_class_lists_of_the_docs(repository: Path) -> None:
    text = (repository / "docs" / "label_files.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```json\n(\{.*?)```", text, re.DOTALL)
    lists = [Vocabulary.from_text(block, "", "docs/label_files.md") for block in blocks]
    assert [v.name for v in lists] == ["scenes", "cracks"]
    assert {v.seen for v in lists} == {(True, False)}
    assert color_table(lists[0]).values.tolist() == [0, 1, 255]
    assert lists[1].classes[1].ids == (1, 255) and lists[1].ignored == (254,)


def test_jpeg_is_no_label_file(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 13:50] = 255
    # Slanted edges and strong compression leave values between the two.
    mask[np.tril_indices(24)] = 255
    path = tmp_path / "a.jpg"
    Image.fromarray(mask).save(path, quality=50)
    two = Vocabulary.from_names(["sand", "ball"])
    with pytest.raises(DatasetError, match="a JPEG, which changes values.*--threshold 128"):
        read_label(path, two)
    # The values give it away where the file does not.
    values = np.clip(np.where(mask == 0, np.arange(64) % 13, 255 - np.arange(64) % 13), 0, 255)
    with pytest.raises(DatasetError, match="near 255 are a 0/255 mask compressed"):
        check_label(values.astype(np.uint8), "a.png", two, (64, 64))


def test_gray_that_is_the_ignore_color_alone_is_ignored(tmp_path: Path) -> None:
    """As in a file with colours; `tagclip labels convert` reads it so, too."""
    vocabulary = replace(VOCABULARY, ignore_label=9)
    for values in ([[255, 255]], [[0, 255]]):
        path = _write(tmp_path / "a.png", np.array(values, np.uint8))
        expected = [[9 if value == 255 else 2 for value in values[0]]]
        np.testing.assert_array_equal(read_label(path, vocabulary), expected)
