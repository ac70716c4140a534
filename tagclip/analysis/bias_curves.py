"""What every seen bias would give, from one pass: the seen-unseen curve and its area.

Scores are linear in the bias b: a seen class scores A - b B, where B (1, or the trusty map if the
bias goes before the gate) is the same for all seen classes of a pixel, and an unseen class scores
U. So b decides only between the best seen and the best unseen class of a pixel, and the pixel
changes sides once, at b = (A - U) / B. Histograms of where it does hold the confusions of all
biases (Chao et al. 2016, arXiv 1605.04253, vary the bias of the seen classes like this).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tagclip.errors import DatasetError

__all__ = ["BiasCounts", "Contest", "BiasCurve", "bias_grid"]

_STEPS = 4096


@dataclass(frozen=True)
class Contest:
    """The best seen and the best unseen class of N pixels.

    Attributes:
        seen: (N,) integers, index of the best seen class.
        unseen: (N,) integers, of the best unseen class.
        gap: (N,) float64, A - U, how far the seen one is ahead at bias 0.
        slope: (N,) float64, B >= 0, what a bias of 1 takes from it.
    """

    seen: np.ndarray
    unseen: np.ndarray
    gap: np.ndarray
    slope: np.ndarray

    def __getitem__(self, pixels: np.ndarray) -> Contest:
        """Some of the pixels."""
        return Contest(self.seen[pixels], self.unseen[pixels], self.gap[pixels], self.slope[pixels])

    def labels(self, bias: float) -> np.ndarray:
        """(N,) predicted classes at a bias; of equal scores, the class that comes first wins."""
        ahead = self.gap - bias * self.slope
        wins = (ahead > 0) | ((ahead == 0) & (self.seen < self.unseen))
        return np.where(wins, self.seen, self.unseen)

    def wins(self, grid: np.ndarray) -> np.ndarray:
        """(N,) of how many biases of an ascending grid the seen class wins: the first ones."""
        flat = np.where(self.gap == 0, self.seen < self.unseen, self.gap > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            change = np.where(self.slope > 0, self.gap / self.slope, np.where(flat, 1, -1) * np.inf)
        count = np.searchsorted(grid, change)
        tied = grid[np.minimum(count, len(grid) - 1)] == change
        return count + (tied & (self.seen < self.unseen))


def bias_grid(biases: Iterable[float] = (), steps: int = _STEPS) -> np.ndarray:
    """Ascending biases from far below -1 to far above 1, closest around 0.

    The i-th is z / (1 - abs(z)) with z at even distances in (-1, 1): around 0 they are 2 / steps
    apart, and a pixel with a trusty map of w changes sides between -1 / w and 1.

    Args:
        biases: finite ones that shall be among them; 0 is.
        steps: number of the others.

    Returns:
        (G,) float64.
    """
    z = np.linspace(-1, 1, steps + 2)[1:-1]
    return np.unique(np.concatenate([z / (1 - np.abs(z)), [0.0], list(biases)]))


class BiasCounts:
    """Histograms of where pixels change sides; memory does not grow with them.

    Attributes:
        grid: (G,) ascending biases.
        seen: (K,) bool.
        true: (K, G + 1) pixels of each class by the number of biases at which a seen class wins.
        unlabelled: (G + 1,) the same of pixels without label.
    """

    def __init__(self, seen: np.ndarray, grid: np.ndarray) -> None:
        """Count nothing yet."""
        self.seen, self.grid = seen, grid
        self.true, self._hits, self._predicted = np.zeros(
            (3, len(seen), len(grid) + 1), dtype=np.int64
        )
        self.unlabelled = np.zeros(len(grid) + 1, dtype=np.int64)

    def add(self, truth: np.ndarray, contest: Contest) -> None:
        """Count N pixels.

        Args:
            truth: (N,) indices of their classes; those outside [0, K) have no label, no IoU knows
                of them.
            contest: their best classes.
        """
        wins = contest.wins(self.grid)
        labelled = (truth >= 0) & (truth < len(self.seen))
        self.unlabelled += np.bincount(wins[~labelled], minlength=len(self.unlabelled))
        truth, wins, contest = truth[labelled], wins[labelled], contest[labelled]
        hit = (truth == contest.seen) | (truth == contest.unseen)
        self._count(self.true, truth, wins)
        self._count(self._hits, truth[hit], wins[hit])
        self._count(self._predicted, contest.seen, wins)
        self._count(self._predicted, contest.unseen, wins)

    def unseen_share(self, index: int) -> float:
        """Percent of the pixels without label that get an unseen class; nan if there are none.

        Args:
            index: of a bias of `curve`.
        """
        total = self.unlabelled.sum()
        return 100 * float(self.unlabelled[:index].sum() / total) if total else float("nan")

    @staticmethod
    def _count(table: np.ndarray, classes: np.ndarray, wins: np.ndarray) -> None:
        index = classes.astype(np.int64) * table.shape[1] + wins
        table += np.bincount(index, minlength=table.size).reshape(table.shape)

    def curve(self) -> BiasCurve:
        """Accuracy and IoU of the classes at every bias, averaged over seen and unseen ones.

        Raises:
            DatasetError: no pixel of a seen, or of an unseen class was counted.
        """
        total = self.true.sum(axis=1)
        for name, part in (("seen", self.seen), ("unseen", ~self.seen)):
            if not total[part].any():
                raise DatasetError(
                    f"found no labelled pixel of {name} classes, expected some of both sides; "
                    "analyze a dataset that shows seen and unseen classes"
                )
        hits, predicted = self._by_bias(self._hits), self._by_bias(self._predicted)
        sides = [part & (total > 0) for part in (self.seen, ~self.seen)]
        iou, accuracy = (
            [100 * (hits[k] / union[k]).mean(axis=0) for k in sides]
            for union in (
                total[:, None] + predicted - hits,
                np.broadcast_to(total[:, None], hits.shape),
            )
        )
        return BiasCurve(np.array([-np.inf, *self.grid, np.inf]), *iou, *accuracy)

    def _by_bias(self, table: np.ndarray) -> np.ndarray:
        """(K, G + 2) pixels that get the class at bias -inf, at each of the grid and at +inf."""
        below = np.zeros((len(table), table.shape[1] + 1), dtype=np.int64)
        np.cumsum(table, axis=1, out=below[:, 1:])
        # At the p-th of these biases the seen class wins where it wins at p biases or more.
        return np.where(self.seen[:, None], below[:, -1:] - below, below)


@dataclass(frozen=True)
class BiasCurve:
    """Means at P biases, from only seen classes (-inf) to only unseen ones (+inf).

    Attributes:
        biases: (P,) ascending.
        seen: (P,) mIoU-seen in percent.
        unseen: (P,) mIoU-unseen in percent.
        seen_accuracy: (P,) mean accuracy of seen classes in percent.
        unseen_accuracy: (P,) mean accuracy of unseen classes in percent.
    """

    biases: np.ndarray
    seen: np.ndarray
    unseen: np.ndarray
    seen_accuracy: np.ndarray
    unseen_accuracy: np.ndarray

    @property
    def hiou(self) -> np.ndarray:
        """(P,) harmonic mean of mIoU-seen and mIoU-unseen in percent."""
        total = self.seen + self.unseen
        return 2 * self.seen * self.unseen / np.where(total > 0, total, 1)

    def best(self) -> int:
        """Index of the largest hIoU; at the two ends it is 0."""
        return 1 + int(self.hiou[1:-1].argmax())

    def at(self, bias: float) -> int:
        """Index of a bias of the grid."""
        return int(np.searchsorted(self.biases, bias))

    def area(self) -> float:
        """AUSUC of the two mIoU: area below the trade-off, in percent of 100 x 100.

        At the ends both mIoU fall, because IoU counts the pixels that are wrongly taken: such
        points are no trade-off. Trapezoids join those that no other bias beats on both sides.
        """
        return _front_area(self.unseen, self.seen)

    def accuracy_area(self) -> float:
        """AUSUC of the two accuracies, as defined by Chao et al., in percent."""
        return _front_area(self.unseen_accuracy, self.seen_accuracy)

    def thinned(self, precision: float = 0.01) -> BiasCurve:
        """Only points that differ from the last one by at least ``precision``, and the two ends."""
        kept, values = [0], np.stack([self.seen, self.unseen])
        for index in range(1, len(self.biases)):
            last = index == len(self.biases) - 1
            if last or np.abs(values[:, index] - values[:, kept[-1]]).max() >= precision:
                kept.append(index)
        return BiasCurve(*(values[kept] for values in vars(self).values()))


def _front_area(x: np.ndarray, y: np.ndarray) -> float:
    """Area below the points that are not beaten in x and y, down to the axes, over 100.

    Where y falls as x grows, as accuracies do, these are all of them: the plain trapezoids.
    """
    order = np.lexsort((-y, -x))
    x, y = x[order], y[order]
    best = np.maximum.accumulate(y)
    front = np.concatenate([[True], y[1:] > best[:-1]])
    x, y = x[front][::-1], y[front][::-1]
    return float(np.trapezoid(y, x) + x[0] * y[0]) / 100
