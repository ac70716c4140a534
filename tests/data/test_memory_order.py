"""Order in memory: the same numbers as numpy's, with memory of their own."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tagclip.data.memory_order import contiguous, planes

sides = st.integers(1, 30)
views = st.sampled_from(
    [
        lambda image: image,
        lambda image: image[:, ::-1],
        lambda image: image[::-1],
        lambda image: image[::-1, ::-1],
        lambda image: image[:, :, ::-1],
        lambda image: image[: (len(image) + 1) // 2, ::-2],
    ]
)


@given(sides, sides, views)
def test_order_changes_and_nothing_else(height: int, width: int, view) -> None:
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    shown = view(image)
    before = image.copy()
    ordered, found = contiguous(shown), planes(shown)
    assert ordered.flags.c_contiguous and found.is_contiguous()
    np.testing.assert_array_equal(ordered, shown)
    np.testing.assert_array_equal(found.numpy(), np.transpose(shown, (2, 0, 1)))
    found.zero_()
    np.testing.assert_array_equal(image, before)
