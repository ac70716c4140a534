"""Polygons of masks: whoever rasterises them as its tool does gets the mask back, to the pixel."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from helpers.labelled_images import label_maps
from hypothesis import example, given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib.path import Path as Outline
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from tagclip.data.formats.polygons import trace_polygons

RING = np.pad(np.zeros((1, 1), bool), 2, constant_values=True)


def pillow(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """As labelme."""
    image = Image.new("1", (width, height))
    points = [(float(x), float(y)) for x, y in polygon]
    ImageDraw.Draw(image).polygon(points, outline=1, fill=1)
    return np.array(image)


def opencv(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.fillPoly(np.zeros((height, width), np.uint8), [polygon.astype(np.int32)], 1) > 0


def pycocotools(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """As COCO, CVAT, datumaro."""
    code = coco_mask.frPyObjects([polygon.ravel().astype(float).tolist()], height, width)
    return coco_mask.decode(code)[..., 0] > 0


def centers_inside(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """By the definition of the even-odd rule: edges on the left of each pixel's centre."""
    crossings = np.zeros((height, width), int)
    ys, xs = np.mgrid[:height, :width] + 0.5
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        assert x0 == x1 or y0 == y1
        crossings += (x0 == x1) & (x0 < xs) & (min(y0, y1) < ys) & (ys < max(y0, y1))
    return crossings % 2 == 1


def painted(polygons: list[np.ndarray], rasterise: object, size: tuple[int, int]) -> np.ndarray:
    """How often each pixel is inside."""
    return sum((rasterise(p, *size).astype(int) for p in polygons), np.zeros(size, int))


@settings(max_examples=150, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)))
@example(RING)
@example(np.ones((1, 1), bool))
@example(np.ones((1, 5), bool))
@example(np.zeros((3, 4), bool))
@example(np.indices((6, 6)).sum(axis=0) % 2 == 0)
@example(np.kron(RING, RING).astype(bool))
def test_the_mask_comes_back(mask: np.ndarray) -> None:
    centers, corners = trace_polygons(mask, "centers"), trace_polygons(mask, "corners")
    for polygons, rasterise in (
        (centers, pillow), (centers, opencv), (corners, pycocotools), (corners, centers_inside)
    ):  # fmt: skip
        assert (painted(polygons, rasterise, mask.shape) == mask).all(), rasterise
    regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
    assert len(centers) == len(corners) == regions
    assert all(len(polygon) >= 3 for polygon in centers + corners)


@pytest.mark.parametrize("labels", label_maps())
def test_holes_turn_the_other_way(labels: np.ndarray) -> None:
    """So that they stay empty for canvases that fill by the non-zero rule, too."""
    for k in range(4):
        area = 0
        for polygon in trace_polygons(labels == k, "corners"):
            following = np.roll(polygon, -1, axis=0)
            area += (polygon[:, 0] * following[:, 1] - polygon[:, 1] * following[:, 0]).sum() / 2
        assert abs(area) == (labels == k).sum()


def test_only_corners_are_points() -> None:
    assert trace_polygons(np.ones((4, 7), bool), "corners")[0].tolist() in (
        [[0, 0], [0, 4], [7, 4], [7, 0]], [[0, 0], [7, 0], [7, 4], [0, 4]]
    )  # fmt: skip
    assert len(trace_polygons(RING, "corners")[0]) == 4 + 4 + 2
    large = np.zeros((200, 300), bool)
    large[20:150, 30:280] = True
    inside = Outline(trace_polygons(large, "corners")[0]).contains_points([(30.5, 20.5), (29, 19)])
    assert inside.tolist() == [True, False]
    assert len(trace_polygons(large, "centers")[0]) == 4


def test_single_pixels_and_order() -> None:
    mask = np.zeros((5, 6), bool)
    mask[3, 1] = mask[1, 4] = True
    assert [p.tolist() for p in trace_polygons(mask, "centers")] == [[[4, 1]] * 3, [[1, 3]] * 3]
    assert [len(p) for p in trace_polygons(mask, "corners")] == [4, 4]
