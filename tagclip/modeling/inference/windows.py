"""The networks on the windows of several images, in batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tagclip.errors import ConfigError
from tagclip.modeling.batching import pad
from tagclip.modeling.inference.out_of_memory import none_if_out_of_memory, warn_and_free
from tagclip.modeling.inference.sliding_window import WindowGrid

__all__ = ["WindowedImage", "window_logits"]

Logits = tuple[Tensor, Tensor | None]
# Index of an image, and the window's rows and columns in it.
Window = tuple[int, tuple[slice, slice]]


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

    Where the accelerator's memory is too small for a batch, the rest goes through in halves of it,
    which is logged.

    Args:
        images: of any sizes.
        networks: (N, 3, h, w) windows -> (N, K, ...) class logits and (N, 1, ...) trusty logits,
            or None.
        batch_size: windows per call, at least 1.

    Returns:
        For each image, the logits of its W windows in the order of its grid: (W, K, ...) and
        (W, 1, ...) or None.

    Raises:
        ConfigError: the memory is too small for a single window.
    """
    windows = defaultdict(list)
    for number, image in enumerate(images):
        for place in image.grid:
            windows[image.padded_size].append((number, place))
    found: list[list[Logits]] = [[] for _ in images]
    for size, places in windows.items():
        while places:
            batch = places[:batch_size]
            logits = none_if_out_of_memory(partial(_run, networks, images, batch, size))
            if logits is None:
                batch_size = _half(len(batch), size)
                continue
            classes, trusty = logits
            for i, (number, _) in enumerate(batch):
                found[number].append((classes[i], None if trusty is None else trusty[i]))
            places = places[len(batch) :]
    return [_stacked(logits) for logits in found]


def _run(
    networks: Callable[[Tensor], Logits],
    images: Sequence[WindowedImage],
    batch: Sequence[Window],
    size: tuple[int, int],
) -> Logits:
    """Cut a batch of windows, pad them to one (height, width), run the networks."""
    cut = [pad(images[n].pixels[:, rows, cols], *size, 0.0) for n, (rows, cols) in batch]
    return networks(torch.stack(cut))


def _half(count: int, size: tuple[int, int]) -> int:
    """The next smaller batch after one that did not fit."""
    key = "MODEL.TAGCLIP.TEST.WINDOW_BATCH"
    what = f"{count} windows" if count > 1 else "one window"
    found = f"{key}: found the GPU's memory full with {what} of {size[0]}x{size[1]} pixels"
    if count == 1:
        raise ConfigError(
            f"{found}, expected room for it; lower MODEL.TAGCLIP.TEST.WINDOW (with MODE slide), "
            "free the GPU, or set MODEL.DEVICE cpu"
        )
    warn_and_free(f"{found}: going on with {count // 2}; set {key} {count // 2}", __name__)
    return count // 2


def _stacked(logits: Sequence[Logits]) -> Logits:
    classes, trusty = zip(*logits, strict=True)
    return torch.stack(classes), None if trusty[0] is None else torch.stack(trusty)
