"""Boxes and ellipses against the plain question whether a pixel's middle is inside."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from tagclip.data.formats.shapes import box_mask, ellipse_mask
from tagclip.errors import DatasetError

SIZE = (40, 60)
Y, X = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5


def turned_back(center: tuple[float, float], degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The middles of the pixels, turned anticlockwise around a point (y points down)."""
    turn = np.exp(-1j * np.radians(degrees)) * ((X - center[0]) + 1j * (Y - center[1]))
    return turn.real, turn.imag


@pytest.mark.parametrize("degrees", [0, 30, 90, 200])
def test_ellipses(degrees: float) -> None:
    mask = ellipse_mask(SIZE, (30.3, 20.2), (14, 6), degrees)
    x, y = turned_back((30.3, 20.2), degrees)
    assert (pickle.loads(pickle.dumps(mask))() == ((x / 14) ** 2 + (y / 6) ** 2 <= 1)).all()
    assert abs(mask().sum() - np.pi * 14 * 6) < 10


@pytest.mark.parametrize("corners", [(3, 5, 9, 8), (0, 0, 60, 40), (59, 39, 60, 40)])
def test_boxes_cover_the_pixels_between_their_edges(corners: tuple[int, ...]) -> None:
    expected = np.zeros(SIZE, bool)
    expected[corners[1] : corners[3], corners[0] : corners[2]] = True
    assert (box_mask(SIZE, corners)() == expected).all()


@pytest.mark.parametrize("pivot", [0, 1])
@pytest.mark.parametrize("degrees", [17, 45, 90, 160])
def test_turned_boxes(degrees: float, pivot: int) -> None:
    corners = (25, 15, 41, 24) if pivot else (30, 20, 40, 26)
    center = ((25 + 41) / 2, (15 + 24) / 2) if pivot else (30, 20)
    x, y = turned_back(center, degrees)
    x, y = x + center[0], y + center[1]
    edges = [x - corners[0], corners[2] - x, y - corners[1], corners[3] - y]
    inside, distance = np.min(edges, 0) > 0, np.abs(np.min(edges, 0))
    found = box_mask(SIZE, corners, degrees, pivot)()
    # The polygon rule of pycocotools may differ where an edge cuts a pixel, and nowhere else.
    assert (found == inside)[distance > 1].all() and inside.sum() > 50
    area = (corners[2] - corners[0]) * (corners[3] - corners[1])
    assert abs(found.sum() - area) <= 0.1 * area


@pytest.mark.parametrize("radii", [(0, 3), (3, -1), (3, float("nan"))])
def test_radii_are_above_zero(radii: tuple[float, float]) -> None:
    with pytest.raises(DatasetError, match="radii above 0"):
        ellipse_mask(SIZE, (3, 3), radii)


@pytest.mark.parametrize(
    ("center", "degrees", "message"),
    [
        (
            (80, 5),
            0,
            "at x 70..90, y 3..7, outside the 60x40 image; are these the images that were",
        ),
        ((30, -3), 0, "at x 20..40, y -5..-1, outside the 60x40 image"),
        ((-3, 5), 90, "at x -5..-1, y -5..15, outside"),
        ((30, 51), 90, "at x 28..32, y 41..61, outside"),
    ],
)
def test_ellipses_outside_the_image(
    center: tuple[float, float], degrees: float, message: str
) -> None:
    with pytest.raises(DatasetError, match=f"found an ellipse {message}"):
        ellipse_mask(SIZE, center, (10, 2), degrees)


def test_ellipses_that_reach_into_the_image() -> None:
    assert ellipse_mask(SIZE, (-9, 5), (10, 2))().sum() == 2
    assert ellipse_mask(SIZE, (30, 49), (10, 2), 90)().any()
