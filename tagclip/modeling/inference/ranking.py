"""The best classes of every pixel, while scores pass by a few classes at a time."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BestClass", "TopClasses", "label_dtype"]


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
        """``top_labels`` and ``top_scores`` of `ViewAverage.labels`; nothing if k is 0."""
        if not len(self.scores):
            return {}
        return {"top_labels": self.labels, "top_scores": self.scores.half()}
