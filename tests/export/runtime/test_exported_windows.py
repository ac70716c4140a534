"""Windows of an exported model against those of the model itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tagclip.export.runtime.windows import label_image, window_places
from tagclip.modeling.inference.fusion import fuse_windows
from tagclip.modeling.inference.windows import WindowGrid

# Height, width, window, stride.
GRIDS = [
    (512, 683, 512, 426),
    (37, 91, 32, 20),
    (20, 20, 32, 32),
    (65, 1, 32, 31),
    (64, 96, 32, 32),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_windows_are_those_of_the_model(grid: tuple[int, int, int, int]) -> None:
    height, width, window, stride = grid
    windows = {"size": [window, window], "stride": [stride, stride]}
    assert window_places(height, width, windows) == list(WindowGrid.cover(*grid))
    whole = window_places(height, width, {"size": None, "stride": None})
    assert whole == [(slice(0, height), slice(0, width))]


def test_labels_are_the_best_means_of_the_windows() -> None:
    height, width, window, stride = 37, 91, 32, 20
    grid = WindowGrid.cover(height, width, window, stride)
    scores = torch.rand(len(grid), 5, window, window, generator=torch.Generator().manual_seed(0))
    calls = iter(scores.numpy())
    windows = {"size": [window, window], "stride": [stride, stride]}
    recipe = {"windows": windows, "background_threshold": 0.5}
    pixels, size = np.zeros((3, height, width), np.uint8), (height, width)
    labels = label_image(pixels, size, recipe, lambda _: next(calls)[None])
    mean = fuse_windows(scores.__getitem__, grid, grid.coverage(torch.device("cpu")))
    expected = torch.where(mean.amax(dim=0) < 0.5, -1, mean.argmax(dim=0))
    assert (labels == expected.numpy()).all()
    assert {-1, 0, 1, 2, 3, 4} == set(labels.ravel().tolist())
