"""Windows cover every pixel, and their fusion equals a naive average."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tagclip.errors import ConfigError
from tagclip.modeling.inference.fusion import fuse_windows
from tagclip.modeling.inference.windows import WindowGrid, window_origins


@given(
    size=st.integers(1, 400),
    window=st.integers(1, 128),
    share=st.floats(0.0, 1.0),
)
def test_windows_cover_the_axis_and_stay_inside(size: int, window: int, share: float) -> None:
    stride = max(1, round(window * share))
    origins = window_origins(size, window, stride)
    length = min(window, size)
    covered = {pixel for origin in origins for pixel in range(origin, origin + length)}
    assert covered == set(range(size))
    assert origins == sorted(set(origins))


def test_official_number_of_windows() -> None:
    for size in range(64, 400, 7):
        expected = max(size - 64 + 53 - 1, 0) // 53 + 1
        assert len(window_origins(size, 64, 53)) == expected


@pytest.mark.parametrize("stride", [0, -3, 65])
def test_stride_that_leaves_gaps_is_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match=f"STRIDE: found {stride}, expected 1 to WINDOW"):
        window_origins(200, 64, stride)


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    window=st.integers(4, 40),
    seed=st.integers(0, 99),
)
def test_fusion_equals_a_naive_average(height: int, width: int, window: int, seed: int) -> None:
    grid = WindowGrid.cover(height, width, window, max(1, window * 3 // 4))
    rng = np.random.default_rng(seed)
    scores = rng.random((len(grid), 2, grid.window_height, grid.window_width))
    total = np.zeros((2, height, width))
    count = np.zeros((height, width))
    for index, (rows, columns) in enumerate(grid):
        padded = np.zeros((2, height, width))
        padded[:, rows, columns] = scores[index]
        total += padded
        count[rows, columns] += 1
    assert (count > 0).all()
    tensors = torch.from_numpy(scores)
    fused = fuse_windows(tensors.__getitem__, grid, grid.coverage(tensors.device))
    np.testing.assert_allclose(fused.numpy(), total / count, atol=1e-12)
    np.testing.assert_array_equal(grid.coverage(torch.device("cpu")).numpy(), count)
