"""From the low-resolution logits of an image's windows to its scores or labels.

Nothing here grows with the number of classes but the logits themselves (4 KiB per class and
32 x 32 window): classes pass through upsampling, sigmoid, gate, fusion and resize a few at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from tagclip.config.checks import check_value
from tagclip.errors import ConfigError
from tagclip.modeling.inference.out_of_memory import none_if_out_of_memory, warn_and_free
from tagclip.modeling.inference.ranking import BestClass, TopClasses, label_dtype
from tagclip.modeling.inference.sliding_window import WindowGrid, fuse_windows
from tagclip.modeling.inference.upsampling import resize, upsample

__all__ = ["InferenceSettings", "ScoreFusion", "ViewAverage"]

Compute = Callable[["ViewAverage"], dict[str, Tensor]]
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
            keep_logits=cfg.TEST.SAVE_LOGITS,
        )

    def __post_init__(self) -> None:
        check_value("MODEL.TAGCLIP.TEST.MODE", self.mode)
        check_value("MODEL.TAGCLIP.TEST.OUTPUT", self.output)
        check_value("MODEL.TAGCLIP.TEST.BACKGROUND_THRESHOLD", self.background_threshold)
        if self.background_threshold and self.output != "labels":
            raise ConfigError(
                f"MODEL.TAGCLIP.TEST.BACKGROUND_THRESHOLD: found {self.background_threshold} with "
                f"OUTPUT {self.output}, expected 0 (off), or OUTPUT labels"
            )
        # Refuses a stride that would leave gaps.
        self.grid(1, 1)

    def grid(self, height: int, width: int) -> WindowGrid:
        """Lay the windows over an image of (height, width) pixels."""
        if self.mode == "whole":
            return WindowGrid.cover(height, width, max(height, width), max(height, width))
        return WindowGrid.cover(height, width, self.window, self.stride)

    def result(self, views: ViewAverage, size: tuple[int, int]) -> dict[str, Any]:
        """Return what ``output`` asks for at (height, width), and ``logits`` if they are kept."""
        if self.output == "labels":
            found = views.labels(size, self.background_threshold)
        else:
            found = views.scores(size)
        return found | {"logits": views} if self.keep_logits else found


@dataclass(frozen=True)
class ScoreFusion:
    """Low-resolution logits of one image and all that turns them into scores.

    Attributes:
        class_logits: (W, K, h, w) float32, one row per window of ``grid``.
        trusty_logits: (W, 1, h, w) float32, or None without a trusty token.
        seen_mask: (K,) bool.
        grid: the windows; scores have its (height, width).
        padded_size: (height, width) in pixels that h x w stands for: the window, padded to
            whole patches.
        gate: (scores (C, H, W), trusty (1, H, W) or None, seen_mask (C,)) -> gated scores.
        trusty_map: trusty logits -> P(seen), in [0, 1].
        workspace_mib: memory for planes of a chunk of classes.
        mirrored: whether the image was flipped left to right; scores are flipped back.
    """

    class_logits: Tensor
    trusty_logits: Tensor | None
    seen_mask: Tensor
    grid: WindowGrid
    padded_size: tuple[int, int]
    gate: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    trusty_map: Callable[[Tensor], Tensor]
    workspace_mib: float
    mirrored: bool = False

    def labels(self, size: tuple[int, int], threshold: float = 0.0) -> dict[str, Tensor]:
        """Return the best class of every pixel; ties go to the class that comes first.

        Args:
            size: (height, width) of the result in pixels.
            threshold: pixels whose best score is below get the label -1; 0: none.

        Returns:
            ``sem_seg_labels`` (H, W) int16, or int32 above 32767 classes; ``sem_seg_scores``
            (H, W) half; ``trusty`` (H, W) half unless there is no token.
        """
        return ViewAverage((self,)).labels(size, threshold)

    def scores(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """Return ``sem_seg`` (K, H, W) float32, and ``trusty`` as in `labels`."""
        return ViewAverage((self,)).scores(size)

    def chunks(self, size: tuple[int, int], step: int) -> Iterator[Tensor]:
        """Yield (C, H, W) final scores of ``step`` classes at a time, over all classes."""
        trusty = self._trusty_windows()
        coverage = self.grid.coverage(self.class_logits.device)
        count = self.class_logits.shape[1]
        for start in range(0, count, step):
            classes = slice(start, min(start + step, count))

            def window_scores(index: int, classes: slice = classes) -> Tensor:
                scores = self._upsample(self.class_logits[index, classes]).sigmoid_()
                window_trusty = None if trusty is None else trusty[index]
                return self.gate(scores, window_trusty, self.seen_mask[classes])

            yield self._final(fuse_windows(window_scores, self.grid, coverage), size)

    def trusty(self, size: tuple[int, int]) -> Tensor | None:
        """Return (H, W) float32, P(pixel belongs to a seen class); None without a token."""
        windows = self._trusty_windows()
        if windows is None:
            return None
        coverage = self.grid.coverage(windows[0].device)
        return self._final(fuse_windows(windows.__getitem__, self.grid, coverage), size)[0]

    def cpu(self) -> ScoreFusion:
        """Return the same, to be computed on the CPU."""
        trusty = self.trusty_logits
        return replace(
            self,
            class_logits=self.class_logits.cpu(),
            trusty_logits=None if trusty is None else trusty.cpu(),
            seen_mask=self.seen_mask.cpu(),
        )

    def _final(self, planes: Tensor, size: tuple[int, int]) -> Tensor:
        resized = resize(planes, size)
        return resized.flip(-1) if self.mirrored else resized

    def classes_per_chunk(self, size: tuple[int, int]) -> int:
        """Return how many classes the workspace holds at a time."""
        pixels = size[0] * size[1] + self.grid.height * self.grid.width
        pixels += 3 * self.padded_size[0] * self.padded_size[1]
        workspace = self.workspace_mib
        # Vectorised CPU kernels round the last few elements of a tensor differently: a workspace
        # of its own makes the result the same for every setting, and stays in the cache.
        if self.class_logits.device.type == "cpu":
            workspace = _CPU_WORKSPACE_MIB
        return max(1, int(workspace * 2**20 / (4 * pixels)))

    def _trusty_windows(self) -> list[Tensor] | None:
        if self.trusty_logits is None:
            return None
        return [self.trusty_map(self._upsample(logits)) for logits in self.trusty_logits]

    def _upsample(self, logits: Tensor) -> Tensor:
        """(C, h, w) logits of one window -> (C, window_height, window_width)."""
        full = upsample(logits, self.padded_size)
        return full[:, : self.grid.window_height, : self.grid.window_width].contiguous()


@dataclass(frozen=True)
class ViewAverage:
    """Mean of the scores of several views of one image: scales, mirror images.

    Where the accelerator's memory is too small for it, results come from the CPU, which is logged.

    Attributes:
        views: at least one; the same classes in each.
    """

    views: tuple[ScoreFusion, ...]

    def labels(
        self,
        size: tuple[int, int],
        threshold: float = 0.0,
        top_k: int = 0,
        ranked: int | None = None,
    ) -> dict[str, Tensor]:
        """Return what `ScoreFusion.labels` says, of the mean scores.

        Args:
            size, threshold: see there.
            top_k: how many classes to rank at every pixel; 0: none.
            ranked: only the first classes take part in that ranking; None: all, at least top_k.

        Returns:
            As there, and with ``top_k`` ``top_labels`` (k, H, W) of the labels' type and
            ``top_scores`` (k, H, W) half, best first, whatever the threshold.
        """
        labels = partial(
            ViewAverage._labels, size=size, threshold=threshold, top_k=top_k, ranked=ranked
        )
        return self._or_on_cpu(labels)

    def scores(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """Return what `ScoreFusion.scores` says, of the mean scores."""
        return self._or_on_cpu(partial(ViewAverage._scores, size=size))

    def best(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the (H, W) labels of `labels` and their scores, these in float32."""
        count, device = self.views[0].class_logits.shape[1], self.views[0].class_logits.device
        best = BestClass(size, device)
        for start, scores in self._chunks(size):
            best.add(start, scores)
        return best.labels(label_dtype(count)), best.scores

    def _or_on_cpu(self, compute: Compute) -> dict[str, Tensor]:
        found = none_if_out_of_memory(partial(compute, self))
        if found is not None:
            return found
        warn_and_free(
            "MODEL.TAGCLIP.TEST.WORKSPACE_MIB: found the GPU's memory full while the scores of an "
            "image were merged: merging on the CPU, which takes longer; lower the key, or set "
            "MODEL.TAGCLIP.TEST.OUTPUT labels",
            __name__,
        )
        return compute(ViewAverage(tuple(view.cpu() for view in self.views)))

    def _labels(
        self, size: tuple[int, int], threshold: float, top_k: int, ranked: int | None
    ) -> dict[str, Tensor]:
        count, device = self.views[0].class_logits.shape[1], self.views[0].class_logits.device
        dtype = label_dtype(count)
        best, top = BestClass(size, device), TopClasses(top_k, size, dtype, device)
        for start, scores in self._chunks(size):
            best.add(start, scores)
            top.add(start, scores[: None if ranked is None else max(0, ranked - start)])
        labels = best.labels(dtype)
        if threshold > 0:
            labels[best.scores < threshold] = -1
        result = {"sem_seg_labels": labels, "sem_seg_scores": best.scores.half()}
        return result | top.result() | self._trusty(size)

    def _scores(self, size: tuple[int, int]) -> dict[str, Tensor]:
        logits = self.views[0].class_logits
        sem_seg = torch.empty(logits.shape[1], *size, device=logits.device)
        for start, scores in self._chunks(size):
            sem_seg[start : start + len(scores)] = scores
        return {"sem_seg": sem_seg} | self._trusty(size)

    def _chunks(self, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
        """Yield (first class, (C, H, W) mean scores) over all classes."""
        step = min(view.classes_per_chunk(size) for view in self.views)
        start = 0
        for planes in zip(*(view.chunks(size, step) for view in self.views), strict=True):
            yield start, _mean(planes)
            start += len(planes[0])

    def _trusty(self, size: tuple[int, int]) -> dict[str, Tensor]:
        maps = [view.trusty(size) for view in self.views]
        return {} if maps[0] is None else {"trusty": _mean(maps).half()}


def _mean(planes: Sequence[Tensor]) -> Tensor:
    """Mean of tensors of one shape; a single one comes back as it is."""
    return planes[0] if len(planes) == 1 else sum(planes) / len(planes)
