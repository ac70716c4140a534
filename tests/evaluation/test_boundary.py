"""Boundary IoU: against the mask by mask definition of its authors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tagclip.evaluation.boundary import BoundaryIoU, boundary_pixels


def plain_boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """A mask without what is left of it after some erosions, nothing being outside of the image."""
    square = np.ones((3, 3), bool)
    return mask & ~ndimage.binary_erosion(mask, square, iterations=distance, border_value=0)


def plain_iou(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int, ratio: float) -> np.ndarray:
    both, either, true = np.zeros((3, classes))
    for truth, prediction in pairs:
        distance = max(1, round(ratio * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)))
        for k in range(classes):
            a = plain_boundary(truth == k, distance)
            b = plain_boundary((prediction == k) & (truth < classes), distance)
            both[k] += (a & b).sum()
            either[k] += (a | b).sum()
            true[k] += a.sum()
    return np.where(true > 0, 100 * both / np.maximum(either, 1), np.nan)


def blobs(rng: np.random.Generator, size: tuple[int, int], classes: int) -> np.ndarray:
    coarse = rng.integers(0, classes, (-(-size[0] // 4), -(-size[1] // 4)))
    return coarse.repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]


@settings(max_examples=80, deadline=None)
@given(
    classes=st.sampled_from([1, 2, 5, 300]),
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3),
    ratio=st.sampled_from([0.001, 0.02, 0.1, 0.5]),
    ignored=st.booleans(),
    open_pixels=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_equals_the_definition_class_by_class(
    classes: int,
    sizes: list[tuple[int, int]],
    ratio: float,
    ignored: bool,
    open_pixels: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    pairs = [
        (blobs(rng, size, classes + ignored), blobs(rng, size, classes + open_pixels) - open_pixels)
        for size in sizes
    ]
    metric = BoundaryIoU(classes, ratio)
    for pair in pairs:
        metric.update(*pair)
    np.testing.assert_allclose(metric.per_class(), plain_iou(pairs, classes, ratio), rtol=1e-12)


def test_a_moved_square_by_hand() -> None:
    truth, prediction = np.zeros((2, 20, 20), int)
    truth[5:10, 5:10] = 1
    prediction[5:10, 6:11] = 1
    metric = BoundaryIoU(2, 0.001)
    metric.update(truth, prediction)
    # Rings of 16 pixels around 5 x 5: upper and lower row share 4 each, no column meets another.
    assert metric.counts[:, 1].tolist() == [16, 16, 8]
    assert metric.per_class()[1] == pytest.approx(100 * 8 / 24)


def test_objects_add_up_and_large_labels_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    pairs = [(blobs(rng, (30, 20), 3), blobs(rng, (30, 20), 3)) for _ in range(4)]
    whole, parts = BoundaryIoU(3), [BoundaryIoU(3), BoundaryIoU(3)]
    for number, pair in enumerate(pairs):
        whole.update(*pair)
        parts[number % 2].update(*pair)
    assert np.array_equal(whole.counts, sum(part.counts for part in parts))
    labels = np.full((1, 5), 65534)
    labels[0, 4] = 65533
    assert boundary_pixels(np.pad(labels, 9, "edge"), 1)[9, 9:14].tolist() == [0, 0, 0, 1, 1]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="labels of"):
        BoundaryIoU(2).update(np.zeros((2, 3), int), np.zeros((3, 2), int))
