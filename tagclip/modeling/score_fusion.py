"""From the low-resolution logits of an image's windows to its scores or labels.

Nothing here grows with the number of classes but the logits themselves (4 KiB per class and
32 x 32 window): classes pass through upsampling, sigmoid, gate, fusion and resize a few at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from tagclip.errors import ConfigError
from tagclip.modeling.sliding_window import WindowGrid, fuse_windows

__all__ = ["InferenceSettings", "ScoreFusion"]


@dataclass(frozen=True)
class InferenceSettings:
    """Values of ``MODEL.TAGCLIP.TEST`` that say how an image is cut and what is returned."""

    mode: str
    window: int
    stride: int
    window_batch: int
    workspace_mib: float
    output: str

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
        )

    def __post_init__(self) -> None:
        for key, found, expected in (
            ("MODE", self.mode, ("slide", "whole")),
            ("OUTPUT", self.output, ("scores", "labels")),
        ):
            if found not in expected:
                raise ConfigError(
                    f"MODEL.TAGCLIP.TEST.{key}: found {found!r}, "
                    f"expected one of {', '.join(expected)}"
                )

    def grid(self, height: int, width: int) -> WindowGrid:
        """Lay the windows over an image of (height, width) pixels."""
        if self.mode == "whole":
            return WindowGrid.cover(height, width, max(height, width), max(height, width))
        return WindowGrid.cover(height, width, self.window, self.stride)


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
    """

    class_logits: Tensor
    trusty_logits: Tensor | None
    seen_mask: Tensor
    grid: WindowGrid
    padded_size: tuple[int, int]
    gate: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    trusty_map: Callable[[Tensor], Tensor]
    workspace_mib: float

    def labels(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """Return the best class of every pixel; ties go to the class that comes first.

        Args:
            size: (height, width) of the result in pixels.

        Returns:
            ``sem_seg_labels`` (H, W) int16, or int32 above 32767 classes; ``sem_seg_scores``
            (H, W) half; ``trusty`` (H, W) half unless there is no token.
        """
        count = self.class_logits.shape[1]
        dtype = torch.int16 if count <= torch.iinfo(torch.int16).max else torch.int32
        best = torch.full(size, -torch.inf, device=self.class_logits.device)
        labels = torch.zeros(size, dtype=dtype, device=best.device)
        for start, scores in self._chunks(size):
            value, index = (scores[0], None) if len(scores) == 1 else scores.max(dim=0)
            better = value > best
            best = torch.where(better, value, best)
            label = start if index is None else (index + start).to(dtype)
            labels = torch.where(better, label, labels)
        result = {"sem_seg_labels": labels, "sem_seg_scores": best.half()}
        return result | self._trusty_result(size)

    def scores(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """Return ``sem_seg`` (K, H, W) float32, and ``trusty`` as in `labels`."""
        count = self.class_logits.shape[1]
        sem_seg = torch.empty(count, *size, device=self.class_logits.device)
        for start, scores in self._chunks(size):
            sem_seg[start : start + len(scores)] = scores
        return {"sem_seg": sem_seg} | self._trusty_result(size)

    def _chunks(self, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
        """Yield (first class, (C, H, W) final scores) over all classes."""
        trusty = self._trusty_windows()
        coverage = self.grid.coverage(self.class_logits.device)
        count = self.class_logits.shape[1]
        step = self._classes_per_chunk(size)
        for start in range(0, count, step):
            classes = slice(start, min(start + step, count))

            def window_scores(index: int, classes: slice = classes) -> Tensor:
                scores = self._upsample(self.class_logits[index, classes]).sigmoid_()
                window_trusty = None if trusty is None else trusty[index]
                return self.gate(scores, window_trusty, self.seen_mask[classes])

            yield start, _resize(fuse_windows(window_scores, self.grid, coverage), size)

    def _classes_per_chunk(self, size: tuple[int, int]) -> int:
        # Vectorised CPU kernels round the last few elements of a tensor differently: one class
        # at a time makes the result the same for every workspace, and stays in the cache.
        if self.class_logits.device.type == "cpu":
            return 1
        pixels = size[0] * size[1] + self.grid.height * self.grid.width
        pixels += 3 * self.padded_size[0] * self.padded_size[1]
        return max(1, int(self.workspace_mib * 2**20 / (4 * pixels)))

    def _trusty_windows(self) -> list[Tensor] | None:
        if self.trusty_logits is None:
            return None
        return [self.trusty_map(self._upsample(logits)) for logits in self.trusty_logits]

    def _trusty_result(self, size: tuple[int, int]) -> dict[str, Tensor]:
        windows = self._trusty_windows()
        if windows is None:
            return {}
        coverage = self.grid.coverage(windows[0].device)
        fused = fuse_windows(windows.__getitem__, self.grid, coverage)
        return {"trusty": _resize(fused, size)[0].half()}

    def _upsample(self, logits: Tensor) -> Tensor:
        """(C, h, w) logits of one window -> (C, window_height, window_width)."""
        full = _resize(logits, self.padded_size)
        return full[:, : self.grid.window_height, : self.grid.window_width].contiguous()


def _resize(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, align_corners False, no antialiasing: (C, h, w) -> (C, H, W)."""
    if planes.shape[-2:] == tuple(size):
        return planes
    return F.interpolate(planes[None], size, mode="bilinear", align_corners=False)[0]
