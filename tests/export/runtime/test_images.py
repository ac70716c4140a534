"""Resized pixels and planes against cv2."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from tagclip.export.runtime.images import resize_image, resize_plane

SIZES = [
    ((90, 230), (64, 164)),
    ((100, 150), (213, 333)),
    ((333, 500), (512, 769)),
    ((720, 1280), (512, 910)),
    ((1280, 720), (910, 512)),
    ((2000, 3000), (512, 768)),
    ((37, 91), (500, 40)),
    ((64, 48), (64, 48)),
    ((1, 5), (3, 9)),
    ((5, 1), (9, 2)),
    ((1, 1), (7, 7)),
]


@pytest.mark.parametrize(("old", "new"), SIZES, ids=str)
def test_resizing_equals_the_libraries(old: tuple[int, int], new: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*old, 3), np.uint8)
    plane = rng.random(old, np.float32)
    expected = cv2.resize(image, new[::-1]).reshape(*new, 3)
    assert (resize_image(image, new, "cv2") == expected).all()
    found = resize_plane(plane, new)
    assert found.dtype == np.float32
    expected = cv2.resize(plane, new[::-1]).reshape(new)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    pil = Image.fromarray(image).resize(new[::-1], Image.Resampling.BILINEAR)
    assert (resize_image(image, new, "pil") == np.asarray(pil)).all()
