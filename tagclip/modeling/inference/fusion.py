"""From the low-resolution logits of an image's windows to its scores or labels.

Nothing here grows with the number of classes but the logits themselves (4 KiB per class and
32 x 32 window): classes pass through upsampling, sigmoid, gate, fusion and resize a few at a time.
Labels come without these planes where `tiles` or, on a GPU, `triton_fusion` can make them.
In reading order: what is asked for, the fusion, the best classes of every pixel, resizing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from tagclip.config.checks import check_value
from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.inference.gate import Gate, trusty_probability
from tagclip.modeling.inference.tiles import TiledFusion
from tagclip.modeling.inference.triton_fusion import can_fuse, fused_labels
from tagclip.modeling.inference.windows import (
    ViewLogits,
    WindowGrid,
    none_if_out_of_memory,
    warn_and_free,
)
from tagclip.utils.stepping import pause_point

__all__ = [
    "BestClass",
    "InferenceSettings",
    "ScoreFusion",
    "TopClasses",
    "fuse_windows",
    "label_dtype",
    "refuse_nan",
    "resize",
    "upsample",
    "upsample_window",
]

# MODEL.TAGCLIP.TEST.WORKSPACE_MIB of a CPU.
_CPU_WORKSPACE_MIB = 8


@dataclass(frozen=True)
class InferenceSettings:
    """Values of ``MODEL.TAGCLIP.TEST`` that say how an image is cut and what is returned.

    ``keep_logits`` (TEST.SAVE_LOGITS) is whether the logits themselves are returned, too.
    """

    mode: str
    window: int
    stride: int
    window_batch: int
    workspace_mib: float
    output: str
    background_threshold: float = 0.0
    background: str = "threshold"
    keep_logits: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> InferenceSettings:
        """Read ``MODEL.TAGCLIP.TEST``."""
        test = cfg.MODEL.TAGCLIP.TEST
        return cls(
            mode=test.MODE,
            window=test.WINDOW,
            stride=test.STRIDE,
            window_batch=test.WINDOW_BATCH,
            workspace_mib=test.WORKSPACE_MIB,
            output=test.OUTPUT,
            background_threshold=test.BACKGROUND_THRESHOLD,
            background=test.BACKGROUND,
            keep_logits=cfg.TEST.SAVE_LOGITS,
        )

    def __post_init__(self) -> None:
        for name in ("MODE", "OUTPUT", "WINDOW_BATCH", "BACKGROUND_THRESHOLD", "BACKGROUND"):
            check_value(f"MODEL.TAGCLIP.TEST.{name}", getattr(self, name.lower()))
        if self.mode == "slide":
            check_value("MODEL.TAGCLIP.TEST.WINDOW", self.window)
        for name, value, is_on, off in (
            (
                "BACKGROUND_THRESHOLD",
                self.background_threshold,
                self.background_threshold,
                "0 (off)",
            ),
            ("BACKGROUND", self.background, self.background == "auto", "threshold"),
        ):
            if is_on and self.output != "labels":
                raise ConfigError(
                    f"MODEL.TAGCLIP.TEST.{name}: found {value} with OUTPUT {self.output}, expected "
                    f"{off}, or OUTPUT labels"
                )
        # Refuses a stride that would leave gaps.
        self.grid(1, 1)

    @property
    def may_be_other(self) -> bool:
        """Whether a pixel may get none of the classes."""
        return self.background == "auto" or self.background_threshold > 0

    def grid(self, height: int, width: int) -> WindowGrid:
        """Lay the windows over an image of (height, width) pixels."""
        if self.mode == "whole":
            return WindowGrid.cover(height, width, max(height, width), max(height, width))
        return WindowGrid.cover(height, width, self.window, self.stride)

    def result(self, fusion: ScoreFusion, size: tuple[int, int]) -> dict[str, Any]:
        """Return what ``output`` asks for at (height, width), and ``logits`` if they are kept."""
        if self.output == "labels":
            found = fusion.labels(size, self.background_threshold)
        else:
            found = fusion.scores(size)
        return found | {"logits": fusion} if self.keep_logits else found


@dataclass(frozen=True)
class ScoreFusion:
    """Logits of the views of one image and all that turns them into scores, their mean.

    Where the accelerator's memory is too small for it, results come from the CPU, which is logged.

    Attributes:
        views: at least one; the same K classes in each.
        seen_mask: (K,) bool.
        gate: see `Gate`.
        trusty_target: what the trusty token was trained on, see `trusty_probability`; None
            without a token.
        workspace_mib: memory for planes of a chunk of classes.
    """

    views: tuple[ViewLogits, ...]
    seen_mask: Tensor
    gate: Gate
    trusty_target: str | None
    workspace_mib: float

    def labels(
        self,
        size: tuple[int, int],
        threshold: float = 0.0,
        top_k: int = 0,
        ranked: int | None = None,
    ) -> dict[str, Tensor]:
        """Return the best class of every pixel; ties go to the class that comes first.

        Args:
            size: (height, width) of the result in pixels.
            threshold: pixels whose best score is below get the label -1; 0: none. Those get it,
                too, where no class is, if the views know that.
            top_k: how many classes to rank at every pixel; 0: none.
            ranked: only the first classes take part in that ranking; None: all, at least top_k.

        Returns:
            ``sem_seg_labels`` (H, W) int16, or int32 above 32767 classes; ``sem_seg_scores``
            (H, W) half; ``trusty`` (H, W) half unless there is no token. With ``top_k``
            ``top_labels`` (k, H, W) of the labels' type and ``top_scores`` (k, H, W) half, best
            first, whatever the threshold.

        Raises:
            ConfigError: the threshold is no number from 0 to 1.
        """
        check_value("MODEL.TAGCLIP.TEST.BACKGROUND_THRESHOLD", threshold)
        return self._or_on_cpu(lambda self: self._labels(size, threshold, top_k, ranked))

    def scores(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """Return ``sem_seg`` (K, H, W) float32, and ``trusty`` as in `labels`."""
        return self._or_on_cpu(lambda self: self._scores(size))

    def best(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the (H, W) labels of `labels` and their scores, these in float32."""
        found = self._in_one_pass(size)
        if found is not None:
            return found[:2]
        best = BestClass(size, self.seen_mask.device)
        for start, scores in self.chunks(size):
            best.add(start, scores)
        return best.labels(label_dtype(len(self.seen_mask))), best.scores

    def trusty(self, size: tuple[int, int]) -> Tensor | None:
        """Return (H, W) float32, P(pixel belongs to a seen class); None without a token."""
        return self._merged([self._trusty_windows(view) for view in self.views], size)

    def margin(self, size: tuple[int, int]) -> Tensor | None:
        """Return (H, W) float32, below 0 where none of the classes is; None if not tested."""
        windows = [
            None if v.margins is None else [upsample_window(v, m) for m in v.margins]
            for v in self.views
        ]
        return self._merged(windows, size)

    def _merged(
        self, windows: Sequence[list[Tensor] | None], size: tuple[int, int]
    ) -> Tensor | None:
        """Mean plane of what each view has in its windows; None if they have nothing."""
        if windows[0] is None:
            return None
        maps = []
        for view, planes in zip(self.views, windows, strict=True):
            coverage = view.grid.coverage(planes[0].device)
            maps.append(_final(fuse_windows(planes.__getitem__, view.grid, coverage), view, size))
        return _mean(maps)[0]

    def chunks(self, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
        """Yield (first class, (C, H, W) final scores) over all classes, a few at a time."""
        views = [
            (view, self._trusty_windows(view), view.grid.coverage(self.seen_mask.device))
            for view in self.views
        ]
        count, step = len(self.seen_mask), self.classes_per_chunk(size)
        for start in range(0, count, step):
            pause_point()
            classes = slice(start, min(start + step, count))
            planes = []
            for view, trusty, coverage in views:
                scores = partial(self._window_scores, view, trusty, classes)
                planes.append(_final(fuse_windows(scores, view.grid, coverage), view, size))
            yield start, _mean(planes)

    def classes_per_chunk(self, size: tuple[int, int]) -> int:
        """Return how many classes the workspace holds at a time, for the largest view."""
        workspace = self.workspace_mib
        # Vectorised CPU kernels round the last few elements of a tensor differently: a workspace
        # of its own makes the result the same for every setting, and stays in the cache.
        if self.seen_mask.device.type == "cpu":
            workspace = _CPU_WORKSPACE_MIB
        pixels = size[0] * size[1] + max(
            view.grid.height * view.grid.width + 3 * view.padded_size[0] * view.padded_size[1]
            for view in self.views
        )
        return max(1, int(workspace * 2**20 / (4 * pixels)))

    def _window_scores(
        self, view: ViewLogits, trusty: list[Tensor] | None, classes: slice, index: int
    ) -> Tensor:
        """Gated scores (C, window_height, window_width) of one window.

        Sigmoid and gate come before windows and views are averaged, as in the released code: a
        mean of scores is not the score of a mean.
        """
        scores = upsample_window(view, view.class_logits[index, classes]).sigmoid_()
        return self.gate(scores, None if trusty is None else trusty[index], self.seen_mask[classes])

    def _trusty_windows(self, view: ViewLogits) -> list[Tensor] | None:
        if view.trusty_logits is None:
            return None
        return [
            trusty_probability(upsample_window(view, logits), self.trusty_target)
            for logits in view.trusty_logits
        ]

    def _labels(
        self, size: tuple[int, int], threshold: float, top_k: int, ranked: int | None
    ) -> dict[str, Tensor]:
        device, dtype = self.seen_mask.device, label_dtype(len(self.seen_mask))
        found = None if top_k else self._in_one_pass(size)
        if found is not None:
            labels, scores, trusty = found
            others = {} if trusty is None else {"trusty": trusty.half()}
        else:
            best, top = BestClass(size, device), TopClasses(top_k, size, dtype, device)
            for start, planes in self.chunks(size):
                best.add(start, planes)
                top.add(start, planes[: None if ranked is None else max(0, ranked - start)])
            labels, scores = best.labels(dtype), best.scores
            others = top.result() | self._half_trusty(size)
        if threshold > 0:
            labels[scores < threshold] = -1
        margin = self.margin(size)
        if margin is not None:
            labels[margin < 0] = -1
        return {"sem_seg_labels": labels, "sem_seg_scores": scores.half()} | others

    def _in_one_pass(self, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Labels, scores and trusty map without a plane per class; None where that is no use."""
        parts = self.views, self.seen_mask, self.gate, self.trusty_target
        if can_fuse(self.views, size):
            found = fused_labels(*parts, size)
        elif TiledFusion.fits(self.views):
            found = TiledFusion(*parts).best(size)
        else:
            return None
        return found and (found[0].to(label_dtype(len(self.seen_mask))), *found[1:])

    def _scores(self, size: tuple[int, int]) -> dict[str, Tensor]:
        sem_seg = torch.empty(len(self.seen_mask), *size, device=self.seen_mask.device)
        for start, scores in self.chunks(size):
            sem_seg[start : start + len(scores)] = scores
        return {"sem_seg": sem_seg} | self._half_trusty(size)

    def _half_trusty(self, size: tuple[int, int]) -> dict[str, Tensor]:
        trusty = self.trusty(size)
        return {} if trusty is None else {"trusty": trusty.half()}

    def _or_on_cpu(self, compute: Callable[[ScoreFusion], dict[str, Tensor]]) -> dict[str, Tensor]:
        found = none_if_out_of_memory(partial(compute, self))
        if found is not None:
            return found
        warn_and_free(
            "MODEL.TAGCLIP.TEST.WORKSPACE_MIB: found the GPU's memory full while the scores of an "
            "image were merged: merging on the CPU, which takes longer; lower the key, or set "
            "MODEL.TAGCLIP.TEST.OUTPUT labels",
            __name__,
        )
        views = tuple(view.cpu() for view in self.views)
        return compute(replace(self, views=views, seen_mask=self.seen_mask.cpu()))


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


def upsample_window(view: ViewLogits, logits: Tensor) -> Tensor:
    """(C, h, w) logits of one window -> (C, window_height, window_width)."""
    full = upsample(logits, view.padded_size)
    return full[:, : view.grid.window_height, : view.grid.window_width].contiguous()


def _final(planes: Tensor, view: ViewLogits, size: tuple[int, int]) -> Tensor:
    """(C, height, width) planes of a view, upright, at the size of the result."""
    resized = resize(planes, size)
    return resized.flip(-1) if view.mirrored else resized


def _mean(planes: Sequence[Tensor]) -> Tensor:
    """Mean of tensors of one shape; a single one comes back as it is."""
    return planes[0] if len(planes) == 1 else sum(planes) / len(planes)


def label_dtype(classes: int) -> torch.dtype:
    """Smallest of int16 and int32 that holds the indices of so many classes."""
    return torch.int16 if classes <= torch.iinfo(torch.int16).max else torch.int32


class BestClass:
    """The best class of every pixel so far; ties go to the class that comes first.

    Attributes:
        scores: (H, W) float32, its score; nan once any class had nan.
    """

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        """Begin with no class: a score of -inf, label 0."""
        self.scores = torch.full(size, -torch.inf, device=device)
        # Floats hold indices up to 2^24 exactly, and a CPU compares and blends them in vectors.
        self._labels, self._better = torch.zeros(2, *size, device=device)

    def add(self, start: int, scores: Tensor) -> None:
        """Compare (C, H, W) scores of the classes from ``start`` on, in ascending order."""
        if scores.device.type == "cpu":
            self.add_each(start, scores)
        else:
            self.add_chunk(start, scores)

    def add_each(self, start: int, scores: Tensor) -> None:
        """`add` with three cheap passes per class."""
        for label, score in enumerate(scores, start):
            better = torch.gt(score, self.scores, out=self._better)
            # The classes ascend, so a better one has a larger index than any before.
            torch.maximum(self._labels, better.mul_(label), out=self._labels)
            # Hands nan on, which no comparison would.
            torch.maximum(self.scores, score, out=self.scores)

    def add_chunk(self, start: int, scores: Tensor) -> None:
        """`add` with few kernels, whatever the number of classes."""
        value, index = scores.max(dim=0)
        self._labels = torch.where(value > self.scores, (index + start).float(), self._labels)
        torch.maximum(self.scores, value, out=self.scores)

    def labels(self, dtype: torch.dtype) -> Tensor:
        """(H, W) index of the class."""
        return self._labels.to(dtype)


class TopClasses:
    """The k best classes of every pixel so far; ties go to the class that comes first."""

    def __init__(
        self, k: int, size: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        """Begin with k places without class: a score of -inf, label 0 of ``dtype``."""
        self.scores = torch.full((k, *size), -torch.inf, device=device)
        self.labels = torch.zeros((k, *size), dtype=dtype, device=device)

    def add(self, start: int, scores: Tensor) -> None:
        """Rank (C, H, W) scores of the classes from ``start`` on."""
        for label, score in enumerate(scores if len(self.scores) else (), start):
            # Once some classes have passed, the next one is among the best of few pixels.
            pixels = (score > self.scores[-1]).flatten().nonzero()[:, 0]
            places = self.scores.flatten(1)[:, pixels]
            held = self.labels.flatten(1)[:, pixels]
            score, falling = score.flatten()[pixels], torch.full_like(held[0], label)
            better = torch.zeros_like(falling, dtype=torch.bool)
            for i in range(len(places)):
                # What a better class has pushed down goes before what is equal to it below.
                better |= score > places[i]
                score_below = torch.where(better, places[i], score)
                label_below = torch.where(better, held[i], falling)
                places[i] = torch.where(better, score, places[i])
                held[i] = torch.where(better, falling, held[i])
                score, falling = score_below, label_below
            self.scores.flatten(1)[:, pixels] = places
            self.labels.flatten(1)[:, pixels] = held

    def result(self) -> dict[str, Tensor]:
        """``top_labels`` and ``top_scores`` of `ScoreFusion.labels`; nothing if k is 0."""
        if not len(self.scores):
            return {}
        return {"top_labels": self.labels, "top_scores": self.scores.half()}


def resize(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) float -> (C, H, W), ``size``; ``planes`` itself if that is its size.

    Bilinear, align_corners False, no antialiasing.
    """
    if planes.shape[-2:] == tuple(size):
        return planes
    return F.interpolate(planes[None], size, mode="bilinear", align_corners=False)[0]


def upsample(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Do what `resize` does, several times as fast on a CPU where H is a multiple of h.

    Only the h rows are resized along their length. The rows of the result are blends of two of
    them, which takes a pass over whole rows instead of four gathered values per pixel. Not
    differentiable.

    Args:
        planes: (C, h, w) float, such as logits of patches.
        size: (H, W) in pixels.

    Returns:
        (C, H, W).
    """
    rows, (height, width) = planes.shape[-2], size
    factor, rest = divmod(height, rows)
    if rest or factor < 2:
        return resize(planes, size)
    wide = resize(planes, (rows, width))
    full = wide.new_empty(len(planes), height, width)
    # Row y of the result lies at (y + 1/2) / factor - 1/2 among the rows; beyond their ends, the
    # last ones go on.
    first, last = factor // 2, height - (factor - factor // 2)
    full[:, :first] = wide[:, :1]
    full[:, last:] = wide[:, -1:]
    between = full[:, first:last].view(len(planes), rows - 1, factor, width)
    weights = _row_weights(factor, wide.dtype, wide.device)
    torch.lerp(wide[:, :-1, None], wide[:, 1:, None], weights, out=between)
    return full


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _row_weights(factor: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(factor, 1): how far each row between two others is on its way to the second."""
    steps = torch.arange(factor, dtype=dtype, device=device)[:, None]
    return (factor // 2 + steps + 0.5) / factor - 0.5


def refuse_nan(values: Tensor, what: str, name: str) -> None:
    """Refuse a map with nan: a label chosen among nan would count like any other.

    Args:
        values: floats, at least one.
        what: they are, for messages.
        name: of their image, for messages.

    Raises:
        CheckpointError: one is nan.
    """
    # The maximum of numbers and nan is nan.
    if values.max().isnan():
        raise CheckpointError(
            f"{name}: found nan in the {what}, expected numbers; the weights are broken (check "
            "MODEL.WEIGHTS) or too large for half precision"
        )
