"""An image in overlapping windows, and the networks on them, in batches.

First step from image to labels; `tagclip.modeling.inference.fusion` takes the logits from here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch
from detectron2.utils.logger import log_first_n
from torch import Tensor

from tagclip.errors import ConfigError
from tagclip.modeling.inference.grouping import ImageWindows, full_batches
from tagclip.utils.stepping import pause_point

__all__ = [
    "ViewLogits",
    "WindowGrid",
    "WindowPlan",
    "WindowedImage",
    "none_if_out_of_memory",
    "warn_and_free",
    "window_logits",
    "window_origins",
]

T = TypeVar("T")
# Of a batch of windows: (N, K, h, w) of the classes; (N, 1, h, w) of the trusty map, or None;
# (N, 1, h, w) margins of the test for none of the classes, or None.
Logits = tuple[Tensor, Tensor | None, Tensor | None]
Size = tuple[int, int]


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


@dataclass(frozen=True)
class WindowPlan:
    """How an image of some size is to be cut; attributes are those of `WindowedImage`."""

    grid: WindowGrid
    padded_size: Size
    logits_nbytes: int


@dataclass(frozen=True)
class WindowedImage:
    """An image and how it is cut.

    Attributes:
        pixels: (3, H, W), whatever the networks take.
        grid: windows over H x W.
        padded_size: (height, width) to which windows are padded with 0, whole patches.
        mirrored: whether it was flipped left to right.
        logits_nbytes: bytes that the logits of all windows will take.
    """

    pixels: Tensor
    grid: WindowGrid
    padded_size: Size
    mirrored: bool = False
    logits_nbytes: int = 0


@dataclass(frozen=True)
class ViewLogits:
    """Low-resolution logits of one view of an image: a scale of it, or its mirror image.

    Attributes:
        class_logits: (W, K, h, w) float32, one row per window of ``grid``.
        trusty_logits: (W, 1, h, w) float32, or None without a trusty token.
        grid: the windows over (height, width) pixels of the view.
        padded_size: (height, width) in pixels that h x w stands for: the window, padded to
            whole patches.
        mirrored: whether the image was flipped left to right.
        margins: (W, 1, h, w) float32, below 0 where none of the classes is; None: not tested.
    """

    class_logits: Tensor
    trusty_logits: Tensor | None
    grid: WindowGrid
    padded_size: Size
    mirrored: bool = False
    margins: Tensor | None = None

    def cpu(self) -> ViewLogits:
        """Return the same on the CPU."""
        names = ("class_logits", "trusty_logits", "margins")
        found = {name: getattr(self, name) for name in names}
        return replace(self, **{k: None if t is None else t.cpu() for k, t in found.items()})


def window_logits(
    images: Iterable[WindowedImage],
    networks: Callable[[list[Tensor], Size], Logits],
    batch_size: int,
    budget: int,
) -> Iterator[ViewLogits]:
    """Run the networks on all windows; windows of one padded size share batches.

    Where the accelerator's memory is too small for a batch, those of its size go through in halves
    of it, which is logged.

    Args:
        images: of any sizes; taken as `full_batches` says.
        networks: N windows (3, h, w) of an image's pixels, and the size to which they are to be
            padded -> (N, K, h, w) class logits, (N, 1, h, w) trusty logits or None, and
            (N, 1, h, w) margins or None.
        batch_size: windows per call, at least 1.
        budget: bytes of pixels and logits of images that wait, see `full_batches`.

    Yields:
        The logits of each image, in order, windows in the order of its grid.

    Raises:
        ConfigError: the memory is too small for a single window.
    """
    pending: dict[int, _Pending] = {}
    limits: dict[Size, int] = {}

    def taken() -> Iterator[ImageWindows]:
        for number, image in enumerate(images):
            pending[number] = _Pending(image, list(image.grid))
            nbytes = image.pixels.nbytes + image.logits_nbytes
            yield ImageWindows(image.padded_size, len(image.grid), nbytes)

    for batch in full_batches(taken(), batch_size, budget):
        size = pending[batch[0][0]].image.padded_size
        cuts = (pending[number].cut(window) for number, window in batch)
        for (number, _), logits in zip(batch, _run(networks, cuts, size, limits), strict=True):
            pending[number].add(logits)
        while pending and (view := next(iter(pending.values())).view):
            del pending[next(iter(pending))]
            yield view


@dataclass
class _Pending:
    """An image, some of whose windows have their logits; ``view`` once all have."""

    image: WindowedImage | None
    places: list[tuple[slice, slice]]
    logits: list[Logits] = field(default_factory=list)
    view: ViewLogits | None = None

    def cut(self, window: int) -> Tensor:
        return self.image.pixels[:, *self.places[window]]

    def add(self, logits: Logits) -> None:
        self.logits.append(logits)
        if len(self.logits) == len(self.places):
            image, (classes, trusty, margins) = self.image, _stacked(self.logits)
            self.view = ViewLogits(
                classes, trusty, image.grid, image.padded_size, image.mirrored, margins
            )
            # Nothing waits with more than its logits, and not with those of others in its batch.
            self.image, self.logits = None, []


def _run(
    networks: Callable[[list[Tensor], Size], Logits],
    cuts: Iterable[Tensor],
    size: Size,
    limits: dict[Size, int],
) -> list[Logits]:
    """Logits of each window of a batch; ``limits`` are the batches that fit, by size."""
    windows, found = list(cuts), []
    while windows:
        pause_point()
        part = windows[: limits.get(size)]
        logits = none_if_out_of_memory(partial(networks, part, size))
        if logits is None:
            limits[size] = _half(len(part), size)
            continue
        found += zip(*([None] * len(part) if t is None else t for t in logits), strict=True)
        windows = windows[len(part) :]
    return found


def _half(count: int, size: Size) -> int:
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
    parts = zip(*logits, strict=True)
    return tuple(None if part[0] is None else torch.stack(part) for part in parts)


def none_if_out_of_memory(function: Callable[[], T]) -> T | None:
    """Return what the function returns; None if the accelerator's memory is full."""
    try:
        return function()
    except torch.OutOfMemoryError:
        # The error holds the frames of the attempt, and with them its tensors: it ends here.
        return None


def warn_and_free(text: str, logger_name: str) -> None:
    """Log a warning, each text once, and give the allocator's unused blocks back."""
    log_first_n(logging.WARNING, text, name=logger_name, key="message")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
