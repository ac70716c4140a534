"""Which images to look at first, and what an order of them is worth.

By the share of pixels with w < 0.5 the images come first on which the model sees most of what no
mask taught it: those to label next (active learning).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from tagclip.data.label_io import check_label, read_label
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.look_up import look_up
from tagclip.visualization.class_charts import new_chart, series_style, style_axes

__all__ = [
    "SUMMARY_COLUMNS",
    "GainCurve",
    "ImageSummary",
    "draw_gain",
    "image_summary",
    "ranked",
    "unseen_share",
]

# What `image_summary` needs of a row.
SUMMARY_COLUMNS = (
    *("image_id", "height", "width", "unseen", "other", "error"),
    *("segments.name", "segments.share", "segments.score"),
)


class ImageSummary(NamedTuple):
    """A row without its masks (`tagclip.evaluation.segment_rows`).

    Attributes:
        score: mean of the pixels that have a class; None if none has.
        classes: share of the image's pixels by name of the classes on it.
    """

    image_id: str
    height: int | None
    width: int | None
    unseen: float | None
    other: float | None
    score: float | None
    classes: dict[str, float]
    error: str | None


def image_summary(row: Mapping[str, Any]) -> ImageSummary:
    """Sum a row up.

    Args:
        row: with `SUMMARY_COLUMNS`.
    """
    segments = row["segments"] or ()
    total = math.fsum(s["share"] for s in segments)
    score = math.fsum(s["share"] * s["score"] for s in segments) / total if segments else None
    return ImageSummary(
        *(row[name] for name in ("image_id", "height", "width", "unseen", "other")),
        score,
        {s["name"]: s["share"] for s in segments},
        row["error"],
    )


def ranked(
    images: Iterable[ImageSummary], order: str, limit: int | None = None
) -> list[ImageSummary]:
    """Sort images; of equals, and of those without the value, which come last, by their id.

    Args:
        images: any.
        order: ``unseen`` or ``other``, largest first; ``score``, smallest first; ``id``.
        limit: how many to return; memory holds no more of them.
    """

    def key(image: ImageSummary) -> tuple[bool, float, str]:
        value = 0.0 if order == "id" else getattr(image, order)
        sign = 1 if order == "score" else -1
        return value is None, sign * (value or 0.0), image.image_id

    return sorted(images, key=key) if limit is None else heapq.nsmallest(limit, images, key=key)


def unseen_share(path: str, vocabulary: Vocabulary) -> float:
    """Share of the labelled pixels of a label file that are of unseen classes; 0 without any.

    Args:
        path: of the file.
        vocabulary: its classes, with a split.

    Raises:
        DatasetError: the file is missing, damaged, or has other values.
    """
    raw = read_label(path, vocabulary)
    check_label(raw, path, vocabulary, raw.shape)
    truth = look_up(vocabulary.label_lut(), raw)
    counts = np.bincount(truth.ravel(), minlength=len(vocabulary))[: len(vocabulary)]
    return float(counts[~vocabulary.seen_mask].sum() / max(counts.sum(), 1))


@dataclass(frozen=True)
class GainCurve:
    """How many of the images that are looked for are among the first of an order.

    Attributes:
        found: (N + 1,) of N images; the entry n is their number among the first n.
    """

    found: np.ndarray

    @classmethod
    def of(cls, wanted: Sequence[bool]) -> GainCurve:
        """Count.

        Args:
            wanted: of the images in their order, whether they are looked for.
        """
        return cls(np.cumsum([0, *wanted]))

    def best(self) -> np.ndarray:
        """(N + 1,) if all that are looked for came first."""
        return np.minimum(np.arange(len(self.found)), self.found[-1])

    def random(self) -> tuple[np.ndarray, np.ndarray]:
        """(N + 1,) mean and standard deviation of a random order: of the hypergeometric
        distribution."""
        drawn, total = np.arange(len(self.found)), len(self.found) - 1
        share = self.found[-1] / max(total, 1)
        variance = drawn * share * (1 - share) * (total - drawn) / max(total - 1, 1)
        return drawn * share, np.sqrt(variance)


def draw_gain(curves: Mapping[str, GainCurve], title: str) -> Figure:
    """Draw what is found over what is looked at, both in percent.

    Args:
        curves: name -> curve of an order of the same images, some of which are looked for.
        title: above the chart.
    """
    figure = new_chart((6.4, 5.6), title)
    axes = figure.subplots()
    first = next(iter(curves.values()))
    looked = np.linspace(0, 100, len(first.found))
    scale = 100 / first.found[-1]
    mean, deviation = first.random()
    axes.plot(looked, scale * first.best(), color="0.5", ls=":", lw=1.2, label="best possible")
    for index, (name, curve) in enumerate(curves.items()):
        color = series_style(index)["color"]
        axes.plot(looked, scale * curve.found, color=color, lw=1.6, label=name)
    axes.plot(looked, scale * mean, color="0.5", ls="--", lw=1.2, label="random: mean, 2 s.d.")
    low, high = ((scale * (mean + sign * 2 * deviation)).clip(0, 100) for sign in (-1, 1))
    axes.fill_between(looked, low, high, color="0.85", lw=0)
    axes.axvline(10, color="0.7", lw=0.8)
    axes.set(xlim=(0, 100), ylim=(0, 102))
    axes.set_xlabel("images looked at, in percent")
    axes.set_ylabel("of the images with unseen classes, found, in percent")
    axes.legend(fontsize=8, loc="lower right")
    style_axes(axes)
    return figure
