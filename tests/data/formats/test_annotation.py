"""Segments become one map by the stated rule, and masks are what pycocotools makes of them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tagclip.data.formats import READERS, reader
from tagclip.data.formats.annotation import (
    AnnotatedImage,
    Segment,
    paint,
    polygons_mask,
    rle_mask,
)
from tagclip.errors import DatasetError


def encoded(mask: np.ndarray) -> bytes:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


def painted_in_turn(image: AnnotatedImage, values: dict[str, int]) -> np.ndarray:
    """The rule, by sorting: lower order first, then larger area, then earlier."""
    result = np.full(image.size, 9)
    order = sorted(
        range(len(image.segments)),
        key=lambda i: (image.segments[i].order, -image.segments[i].mask().sum(), i),
    )
    for index in order:
        segment = image.segments[index]
        result[segment.mask()] = 255 if segment.is_ignored else values[segment.name]
    return result


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_overlaps_follow_the_rule(data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    segments = []
    for _ in range(data.draw(st.integers(0, 6))):
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        mask = rng.random(size) < data.draw(st.sampled_from([0, 0.2, 0.7, 1]))
        name, order = data.draw(st.sampled_from("ab")), data.draw(st.integers(-1, 2))
        ignored = data.draw(st.booleans())
        segments.append(Segment(name, rle_mask(size, encoded(mask)), order, ignored))
    image, values = AnnotatedImage("x", size, tuple(segments)), {"a": 1, "b": 300}
    found = paint(image, values, 255, 9)
    assert found.dtype == np.uint16 and np.array_equal(found, painted_in_turn(image, values))


def test_small_values_are_bytes() -> None:
    image = AnnotatedImage("x", (2, 3), ())
    assert paint(image, {"a": 1}, 255, 0).dtype == np.uint8


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (Segment("cart", rle_mask((2, 2), [4])), r"^x: found the class 'cart'; did you mean car\?"),
        (
            Segment("car", rle_mask((3, 2), [6])),
            "^x: found a mask of 'car' of 2x3 pixels, expe.* 2x2",
        ),
    ],
)
def test_what_does_not_fit_is_named(segment: Segment, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        paint(AnnotatedImage("x", (2, 2), (segment,)), {"car": 1}, 255, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, 0.02, 0.5, 1]), st.integers(0, 9)
)
def test_run_lengths_are_decoded(height: int, width: int, share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    mask = np.repeat(mask, 30, axis=0)
    flat = mask.ravel("F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    runs = np.diff([0, *changes, len(flat)]).tolist()
    for counts in (encoded(mask), encoded(mask).decode(), runs):
        made = pickle.loads(pickle.dumps(rle_mask(mask.shape, counts)))
        assert np.array_equal(made(), mask)


@pytest.mark.parametrize(
    "counts",
    [
        "",
        "a",
        "!!",
        "\x00\x00",
        "é",
        "~~~~",
        "1" * 99,
        "0000",
        "PPPP",
        [],
        [119],
        [-1, 121],
        [[120]],
    ],
)
def test_damaged_run_lengths(counts: str | list) -> None:
    """pycocotools returns whatever memory holds for some of them."""
    with pytest.raises(DatasetError, match=r"found run lengths of \d+ pixels, expected 12x10"):
        rle_mask((10, 12), counts)


def test_polygons_are_filled_by_pycocotools() -> None:
    polygons = [[1.5, 1, 8, 2, 7, 8.5, 2, 7], [6, 6, 30, 6, 30, 30, -4, 9]]
    rles = coco_mask.frPyObjects(polygons, 10, 12)
    expected = coco_mask.decode(coco_mask.merge(rles)).astype(bool)
    assert np.array_equal(polygons_mask((10, 12), polygons)(), expected)
    assert not polygons_mask((10, 12), [])().any()


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([1, 1, 2, 2], "found a polygon of 4 numbers"),
        ([1, 1, 2, 2, 3, 3, 4], "found a polygon of 7 numbers"),
        ([1, 1, 2, float("nan"), 3, 3], "found the coordinate nan, expected finite numbers"),
        ([1, 1, 2, -float("inf"), 3, 3], "found the coordinate -inf, expected finite numbers"),
        ([20, 1, 25, 1, 25, 5], "x 20..25, y 1..5, outside the 12x10 image"),
    ],
)
def test_a_polygon_that_is_none(polygon: list[float], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        polygons_mask((10, 12), [polygon])


def test_every_reader_has_both_functions() -> None:
    for name in READERS:
        module = reader(name)
        assert callable(module.read) and callable(module.class_names)


@pytest.mark.parametrize("far", [1.1e6, -1e9, 1e300, 10**30])
def test_coordinates_far_beyond_an_image(far: float) -> None:
    with pytest.raises(DatasetError, match="outside the 12x9 image"):
        polygons_mask((9, 12), [[0, 0, far, 0, 6, 4, 0, 4]])
    assert polygons_mask((9, 12), [[0, 0, 9e5, 0, 9e5, 4, 0, 4]])()[:4].all()
