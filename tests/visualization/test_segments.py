"""Pictures: right colours at right places, and nothing that depends on colour alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.pages import find
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib._pylab_helpers import Gcf
from PIL import Image

from tagclip.structures.vocabulary import ClassEntry, Vocabulary
from tagclip.utils.png_notes import read_notes
from tagclip.visualization.panels import (
    draw_legend,
    draw_panels,
    draw_trusty_bar,
    fit,
    save_png,
    stack_pictures,
)
from tagclip.visualization.segments import (
    _free_place,
    colorize_labels,
    colorize_trusty,
    draw_segments,
    legend_names,
    marked_names,
    numbers,
)

WHITE = 255
VOCABULARY = Vocabulary.from_names(["cat", "dog", "sky"], seen=["cat", "sky"])


def blobs() -> np.ndarray:
    """(120, 200) labels: cat left, dog right, sky as a band, ignored pixels at the bottom."""
    labels = np.zeros((120, 200), dtype=np.uint8)
    labels[:, 100:] = 1
    labels[40:70] = 2
    labels[100:] = 255
    return labels


def test_labels_get_the_colours_of_their_classes_and_others_are_hatched() -> None:
    labels = np.random.default_rng(0).integers(-1, 5, (40, 50)).astype(np.int16)
    picture, colors = colorize_labels(labels, VOCABULARY), VOCABULARY.colors
    assert picture.dtype == np.uint8 and picture.shape == (40, 50, 3)
    for y, x in np.ndindex(labels.shape):
        if labels[y, x] in (0, 1, 2):
            assert tuple(picture[y, x]) == tuple(colors[labels[y, x]])
        else:
            assert picture[y, x].tolist() in ([160] * 3, [WHITE] * 3)
    hatch = colorize_labels(np.full((40, 50), 255), VOCABULARY)
    values, counts = np.unique(hatch.reshape(-1, 3), axis=0, return_counts=True)
    assert len(values) == 2 and (values[1] == WHITE).all() and counts[1] > counts[0]
    # Whole lines of one direction, neither rows nor columns: no flat colour looks like this.
    assert all(len(np.unique(line[:, 0])) == 2 for line in (*hatch, *hatch.transpose(1, 0, 2)))


def test_the_scale_of_the_trusty_map_is_fixed_and_grows_brighter() -> None:
    scale = colorize_trusty(np.linspace(0, 1, 101)[None])[0].astype(float)
    luminance = scale @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) >= -0.5).all() and luminance[-1] - luminance[0] > 150
    for value, row in ((0.0, 0), (0.5, 50), (1.0, 100)):
        constant = colorize_trusty(np.full((2, 3), value, dtype=np.float16))
        assert constant.shape == (2, 3, 3) and (constant == scale[row]).all()
    assert (colorize_trusty(np.array([[-1.0, 2.0]]))[0] == scale[[0, 100]]).all()


def test_a_whole_factor_repeats_pixels() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.integers(-1, 300, (20, 30)), rng.integers(0, 256, (20, 30, 3), np.uint8)):
        large = fit(values, 90)
        assert large.dtype == values.dtype
        assert (large == values.repeat(3, axis=0).repeat(3, axis=1)).all()


def test_between_whole_factors_labels_stay_and_colours_mix_where_they_meet() -> None:
    labels = np.random.default_rng(0).integers(-1, 9, (30, 40))
    shown = fit(labels, 53)
    rows, columns = ((np.arange(n) + 0.5) / n for n in shown.shape)
    assert (shown == labels[np.ix_((rows * 30).astype(int), (columns * 40).astype(int))]).all()
    colors = np.zeros((25, 30, 3), np.uint8)
    colors[:, 10:] = 200
    # The border is at 10 2/3 of 32 columns.
    assert (fit(colors, 32)[:, 9:12] == [[[0] * 3, [67] * 3, [200] * 3]]).all()


@pytest.mark.parametrize(
    ("size", "asked", "expected"),
    [((96, 96), 384, (384, 384)), ((3, 5), 384, (230, 384)), ((480, 640), 384, (288, 384)),
     ((1, 3000), 384, (24, 384)), ((300, 1), 384, (384, 24)), ((300, 200), 384, (384, 256)),
     ((360, 480), 512, (384, 512)), ((30, 20), 25, (25, 24)), ((30, 20), 9, (9, 9)),
     ((1, 1), 1, (1, 1)), ((4000, 3000), 512, (512, 384))],
)  # fmt: skip
def test_panels_have_the_wanted_size(
    size: tuple[int, int], asked: int, expected: tuple[int, int]
) -> None:
    labels = np.random.default_rng(0).integers(-1, 9, size)
    shown = fit(labels, asked)
    assert shown.shape == expected and set(shown.ravel()) <= set(labels.ravel())
    colors = np.full((*size, 3), 77, dtype=np.uint8)
    assert fit(colors, asked).shape == (*expected, 3) and (fit(colors, asked) == 77).all()


def test_unseen_names_carry_a_star_while_the_partition_is_known() -> None:
    assert marked_names(VOCABULARY) == ["cat", "★ dog", "sky"]
    assert marked_names(replace(VOCABULARY, seen=None)) == ["cat", "dog", "sky"]


def test_segments_are_coloured_and_outlined() -> None:
    labels = blobs()
    image = np.full((120, 200, 3), 90, dtype=np.uint8)
    half = draw_segments(image, labels, VOCABULARY, alpha=0.5, names=False)
    assert (half[10, 100] == 0).all() and (half[40, 50] == 0).all()
    expected = (image + colorize_labels(labels, VOCABULARY).astype(float)) / 2
    inside = np.ones(labels.shape, dtype=bool)
    inside[[40, 70, 100]] = False
    inside[:, 100] = False
    assert np.abs(half[inside] - expected[inside]).max() <= 0.5


def test_names_stand_inside_their_segments() -> None:
    labels = blobs()
    image = np.zeros((120, 200, 3), dtype=np.uint8)
    bare = draw_segments(image, labels, VOCABULARY, names=False)
    named = draw_segments(image, labels, VOCABULARY)
    assert named.shape == image.shape and named.dtype == np.uint8
    changed = (bare != named).any(axis=2)
    assert all(changed[labels == k].any() for k in range(3))
    assert not changed[labels == 255].any()
    # Only the unseen name grows by being marked.
    open_partition = draw_segments(image, labels, replace(VOCABULARY, seen=None))
    moved = (named != open_partition).any(axis=2)
    assert moved[labels == 1].any() and not moved[labels == 0].any()


@pytest.mark.parametrize("name", [r"a$\frac$b", "{}", "%s & <b>", "50_x^2"])
def test_names_are_data(name: str) -> None:
    vocabulary = Vocabulary.from_names([name], seen=[False])
    labels = np.zeros((60, 200), dtype=np.uint8)
    picture = draw_segments(np.zeros((60, 200, 3), np.uint8), labels, vocabulary)
    assert (picture == WHITE).any()
    assert draw_legend(vocabulary, 300).shape[1] == 300


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), dtype=np.uint8)
    for value in (0, 255):
        assert draw_segments(image, np.full(size, value), VOCABULARY).shape == image.shape


boxes = st.tuples(st.integers(0, 150), st.integers(0, 150), st.integers(1, 60), st.integers(1, 60))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(0, 199), st.integers(0, 149)),
    st.tuples(st.integers(1, 190), st.integers(1, 140)),
    st.lists(boxes, max_size=8),
)
def test_names_never_overlap_nor_leave_the_picture(
    center: tuple[int, int], size: tuple[int, int], boxes: list[tuple[int, int, int, int]]
) -> None:
    taken = [(x, y, x + width, y + height) for x, y, width, height in boxes]
    covered = np.zeros((150, 200), dtype=bool)
    for left, top, right, bottom in taken:
        covered[top:bottom, left:right] = True
    place = _free_place(center, size, (200, 150), taken)
    if place is None:
        left = float(np.clip(center[0] - size[0] / 2, 0, 200 - size[0]))
        rows = covered[:, int(left) : int(np.ceil(left + size[0]))].any(axis=1)
        free = "".join("x" if row else "." for row in rows).split("x")
        assert max(map(len, free)) <= size[1]
        return
    left, top, right, bottom = place
    assert (right - left, bottom - top) == pytest.approx(size)
    assert left >= 0 and top >= 0 and right <= 200 and bottom <= 150
    assert not covered[int(np.ceil(top)) : int(bottom), int(np.ceil(left)) : int(right)].any()


def test_a_free_centre_is_taken() -> None:
    assert _free_place((100, 75), (40, 10), (200, 150), []) == (80, 70, 120, 80)
    assert _free_place((2, 149), (40, 10), (200, 150), []) == (0, 140, 40, 150)
    assert _free_place((100, 75), (40, 10), (200, 150), [(0, 70, 200, 80)]) in (
        (80, 60, 120, 70),
        (80, 80, 120, 90),
    )
    assert _free_place((100, 75), (40, 10), (200, 150), [(0, 0, 200, 145)]) is None


def test_the_legend_lists_every_class_once() -> None:
    names = [f"class {index}" for index in range(171)]
    vocabulary = Vocabulary.from_names(names, seen=names[:160])
    page = draw_legend(vocabulary, 900)
    assert page.shape[1] == 900
    colors, times = np.unique(vocabulary.colors, axis=0, return_counts=True)
    for color, count in zip(colors, times, strict=True):
        assert (page == color).all(axis=2).sum() >= count * 13 * 21
    assert len(colors) < 171 and times.sum() == 171


def test_classes_of_one_colour_are_told_apart_by_numbers() -> None:
    """Their names in the legend and in the largest segment; the number alone in others."""
    classes = [("cat", (200, 0, 0)), ("dog", (201, 0, 0)), ("sky", (0, 0, 200))]
    entries = tuple(ClassEntry(3 + i, name, color=c) for i, (name, c) in enumerate(classes))
    vocabulary = Vocabulary("v", entries)
    assert numbers(vocabulary) == {0: "3", 1: "4"}
    assert legend_names(vocabulary.with_seen([True, False, False])) == ["3 cat", "4 ★ dog", "★ sky"]
    labels = np.full((90, 200), 2)
    labels[:60, :100], labels[:60, 120:150], labels[60:, 150:] = 0, 0, 1
    bare, named = (
        draw_segments(np.zeros((90, 200, 3), np.uint8), labels, vocabulary, names=flag)
        for flag in (False, True)
    )
    changed = (bare != named).any(axis=2)
    assert changed[:60, 120:150].any() and changed[:60, :100].any() and changed[60:, 150:].any()
    far = replace(vocabulary, classes=(*entries[1:], ClassEntry(3, "cat", color=(0, 200, 0))))
    assert not numbers(far) and legend_names(far) == ["dog", "sky", "cat"]
    heights = [
        draw_legend(*arguments, unlabelled=False).shape[0]
        for arguments in ((vocabulary, 900), (far, 900), (vocabulary, 900, [2]))
    ]
    assert heights == [50, 30, 30], "a line on numbers, where there are some"


def test_hatched_pixels_keep_their_colour_between_the_lines() -> None:
    labels = blobs()
    labels[100:] = 0
    image, hatched = np.zeros((120, 200, 3), np.uint8), np.zeros((120, 200), dtype=bool)
    hatched[:, :60] = True
    plain = draw_segments(image, labels, VOCABULARY, 1.0, names=False)
    lined = draw_segments(image, labels, VOCABULARY, 1.0, names=False, hatched=hatched)
    assert (plain[:, 60:] == lined[:, 60:]).all()
    assert 0.3 < (plain[:, :60] == lined[:, :60]).all(axis=2).mean() < 0.7
    # Whole lines, in every row and column, gray beside white: seen on any colour.
    part = lined[2:38, 2:58]
    kinds = [(part == value).all(axis=2) for value in (160, WHITE)]
    assert all(kind.any(axis=axis).all() for kind in kinds for axis in (0, 1))


def test_the_legend_marks_unseen_classes_by_more_than_colour() -> None:
    seen = draw_legend(VOCABULARY.with_seen([True] * 3), 500)
    marked = draw_legend(VOCABULARY, 500)
    # One row of four columns: cat, dog, sky, unlabelled.
    same = (marked[:22] == seen[:22]).all(axis=(0, 2))
    assert same[:125].all() and same[250:].all() and not same[125 + 40 : 250].all()
    # The same letters, but bold.
    plain = Vocabulary.from_names(["cat", "★ dog", "sky"], seen=[True] * 3)
    assert (draw_legend(plain, 500)[:22, 165:250] != marked[:22, 165:250]).any()
    few = draw_legend(VOCABULARY, 500, classes=[0], unlabelled=False)
    assert few.shape[0] == 30 and not find(few, colorize_labels(np.full((5, 5), -1), VOCABULARY))
    assert find(marked, colorize_labels(np.full((13, 21), -1), VOCABULARY))


@pytest.mark.parametrize("width", [200, 700, 1100])
def test_names_of_the_legend_do_not_run_into_each_other(width: int) -> None:
    names = [f"{letter} wide and rather MMMM name" for letter in "abcdefg"]
    vocabulary = Vocabulary.from_names(names, seen=names[:1])
    page = draw_legend(vocabulary, width)
    for color in vocabulary.colors:
        ((y, x),) = find(page, np.full((13, 21, 3), color))
        assert (page[y : y + 13, x - 6 : x - 2] == WHITE).all()


def test_panels_keep_every_picture_whole() -> None:
    rng = np.random.default_rng(0)
    sizes = [[(30, 40), (20, 50)], [(10, 60), None], [(25, 25), (25, 25)]]
    rows = [
        [size and rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in row] for row in sizes
    ]
    page = draw_panels(rows, ["first", "second"], ["row"])
    places = {}
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            if picture is not None:
                ((y, x),) = find(page, picture)
                places[i, j] = (y, x, y + picture.shape[0], x + picture.shape[1])
    assert places[0, 0][0] == places[0, 1][0] and places[0, 0][1] == places[2, 0][1]
    assert places[0, 1][1] > places[1, 0][3] and places[1, 0][0] > places[0, 0][2]
    # A title stands above the first row and above every column, none above the second row.
    assert (page[: places[0, 0][0], : places[0, 1][1]] == 0).any()
    assert (page[: places[0, 0][0], places[0, 1][1] :] == 0).any()
    assert (page[places[0, 0][2] : places[1, 0][0]] == WHITE).all()
    with pytest.raises(ValueError):
        draw_panels(rows, ["first"])


def test_pictures_are_stacked_on_white() -> None:
    page = stack_pictures([np.zeros((2, 5, 3), np.uint8), np.zeros((3, 4, 3), np.uint8)])
    assert page.shape == (5, 5, 3) and (page[2:, 4] == WHITE).all() and not page[2:, :4].any()


def test_the_bar_spans_the_whole_scale() -> None:
    bar = draw_trusty_bar(288)
    ends = colorize_trusty(np.array([[0.0, 1.0]]))[0]
    assert bar.shape == (38, 288, 3) and (bar[10, [0, -1]] == ends).all()


def test_png_holds_the_same_pixels(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    path = save_png(tmp_path / "new" / "a.png", picture)
    assert (np.asarray(Image.open(path)) == picture).all()
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_drawing_leaves_no_figure_behind() -> None:
    draw_legend(VOCABULARY, 300)
    assert Gcf.get_all_fig_managers() == []


def test_what_is_compressed_fast_holds_the_same(tmp_path: Path) -> None:
    """Said by the zlib stream in the file: 0 is its fastest level, 2 its default."""
    page, labels = draw_legend(VOCABULARY, 300), np.zeros((30, 40), np.uint8)
    for kind, picture, fast in (
        ("RGB", page, True),
        ("RGB", page, False),
        ("P", Image.fromarray(labels).convert("P"), False),
        ("I;16", labels.astype(np.uint16), False),
    ):
        path = save_png(tmp_path / "a.png", picture, "note", fast)
        content = path.read_bytes()
        assert content[content.index(b"IDAT") + 5] >> 6 == (0 if fast else 2)
        with Image.open(path) as written:
            assert written.mode == kind and (np.asarray(written) == np.asarray(picture)).all()
        assert read_notes(path) == ("note", None)


def test_the_scale_is_that_of_matplotlib() -> None:
    values = np.random.default_rng(0).random((50, 60), np.float32)
    values[0, :3] = 0, 1, np.nextafter(np.float32(1), np.float32(0))
    assert (colorize_trusty(values) == colormaps["cividis"](values, bytes=True)[..., :3]).all()


@pytest.mark.parametrize(("width", "entries", "lines"), [(200, 4, 3), (250, 2, 2), (700, 1, 1)])
def test_notes_stay_on_the_page(width: int, entries: int, lines: int) -> None:
    """ "★ counts as unseen; unlabelled pixels are not evaluated" is some 370 pixels long."""
    page = draw_legend(VOCABULARY, width)
    assert page.shape == (20 * (entries + lines) + 10, width, 3)
    assert (page[:, -4:] == WHITE).all() and (page[-4:] == WHITE).all()
    for line in range(lines):
        assert (page[20 * (entries + line) + 8 :][:16] < 128).any()
