"""The networks on the windows of several images, in batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tagclip.modeling.batching import pad
from tagclip.modeling.sliding_window import WindowGrid

__all__ = ["WindowedImage", "window_logits"]

Logits = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class WindowedImage:
    """An image and how it is cut.

    Attributes:
        pixels: (3, H, W) float32, normalised.
        grid: windows over H x W.
        padded_size: (height, width) to which windows are padded with 0, whole patches.
        mirrored: whether it was flipped left to right.
    """

    pixels: Tensor
    grid: WindowGrid
    padded_size: tuple[int, int]
    mirrored: bool = False


def window_logits(
    images: Sequence[WindowedImage], networks: Callable[[Tensor], Logits], batch_size: int
) -> list[Logits]:
    """Run the networks on all windows; windows of one padded size share batches.

    Args:
        images: of any sizes.
        networks: (N, 3, h, w) windows -> (N, K, ...) class logits and (N, 1, ...) trusty logits,
            or None.
        batch_size: windows per call, at least 1.

    Returns:
        For each image, the logits of its W windows in the order of its grid: (W, K, ...) and
        (W, 1, ...) or None.
    """
    windows = defaultdict(list)
    for number, image in enumerate(images):
        for place in image.grid:
            windows[image.padded_size].append((number, place))
    found: list[list[Logits]] = [[] for _ in images]
    for size, places in windows.items():
        for start in range(0, len(places), batch_size):
            batch = places[start : start + batch_size]
            cut = [pad(images[n].pixels[:, rows, cols], *size, 0.0) for n, (rows, cols) in batch]
            classes, trusty = networks(torch.stack(cut))
            for i, (number, _) in enumerate(batch):
                found[number].append((classes[i], None if trusty is None else trusty[i]))
    return [_stacked(logits) for logits in found]


def _stacked(logits: Sequence[Logits]) -> Logits:
    classes, trusty = zip(*logits, strict=True)
    return torch.stack(classes), None if trusty[0] is None else torch.stack(trusty)
