"""Looking for pictures in pages of pictures."""

from __future__ import annotations

import numpy as np


def find(page: np.ndarray, picture: np.ndarray) -> list[tuple[int, int]]:
    """All (y, x) at which a page holds a picture exactly."""
    windows = np.lib.stride_tricks.sliding_window_view(page, picture.shape)[:, :, 0]
    return [tuple(map(int, hit)) for hit in np.argwhere((windows == picture).all((2, 3, 4)))]
