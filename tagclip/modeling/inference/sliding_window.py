"""Overlapping windows over an image, and the fusion of their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tagclip.errors import ConfigError

__all__ = ["WindowGrid", "fuse_windows", "window_origins"]


def window_origins(size: int, window: int, stride: int) -> list[int]:
    """Return the first pixel of every window along one axis.

    Windows advance by ``stride``; the last one is shifted back so that it ends at ``size``
    (docs/method.md, section 4). An axis that is not longer than the window has one window.

    Args:
        size: length of the axis in pixels, at least 1.
        window: length of a window in pixels.
        stride: step in pixels, between 1 and ``window``.

    Raises:
        ConfigError: the stride would leave gaps or never advance.
    """
    if not 1 <= stride <= window:
        raise ConfigError(
            f"MODEL.TAGCLIP.TEST.STRIDE: found {stride}, expected 1 to WINDOW ({window}); "
            "a larger stride leaves pixels without a score"
        )
    count = -(-max(size - window, 0) // stride) + 1
    return [max(min(i * stride + window, size) - window, 0) for i in range(count)]


@dataclass(frozen=True)
class WindowGrid:
    """Windows of one size that cover an image of (height, width) pixels, rows outside."""

    height: int
    width: int
    window_height: int
    window_width: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def cover(cls, height: int, width: int, window: int, stride: int) -> WindowGrid:
        """Lay square windows over an image; a shorter side shrinks them along that axis."""
        return cls(
            height=height,
            width=width,
            window_height=min(window, height),
            window_width=min(window, width),
            tops=tuple(window_origins(height, window, stride)),
            lefts=tuple(window_origins(width, window, stride)),
        )

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        for top in self.tops:
            for left in self.lefts:
                yield (
                    slice(top, top + self.window_height),
                    slice(left, left + self.window_width),
                )

    def coverage(self, device: torch.device) -> Tensor:
        """Return (height, width) float32: how many windows cover each pixel."""
        rows = torch.zeros(self.height, 1, device=device)
        columns = torch.zeros(1, self.width, device=device)
        for top in self.tops:
            rows[top : top + self.window_height] += 1
        for left in self.lefts:
            columns[:, left : left + self.window_width] += 1
        return rows * columns


def fuse_windows(
    window_scores: Callable[[int], Tensor], grid: WindowGrid, coverage: Tensor
) -> Tensor:
    """Average the scores of all windows at every pixel.

    Sums in place into the window's slice: the traffic is that of the windows, not of
    windows times image.

    Args:
        window_scores: index in the grid's order -> (C, window_height, window_width) float.
        grid: where the windows are.
        coverage: `WindowGrid.coverage` of the same grid.

    Returns:
        (C, height, width) mean scores.
    """
    if len(grid) == 1:
        return window_scores(0)
    total: Tensor | None = None
    for index, (rows, columns) in enumerate(grid):
        scores = window_scores(index)
        if total is None:
            total = scores.new_zeros(scores.shape[0], grid.height, grid.width)
        total[:, rows, columns] += scores
    return total.div_(coverage)
