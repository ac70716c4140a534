"""Which classes are taken for which, from the confusion matrix of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from tagclip.utils.text import markdown_table

__all__ = [
    "ALL",
    "KINDS",
    "Confusion",
    "confused_classes",
    "format_confusions",
    "group_confusions",
    "kind_share",
    "list_confusions",
    "share_text",
]

# (true class is seen, predicted class is seen) -> what that is called; the worst for zero-shot
# segmentation first.
KINDS = {
    (False, True): "unseen taken for seen",
    (True, False): "seen taken for unseen",
    (False, False): "unseen taken for unseen",
    (True, True): "seen taken for seen",
}
# The one kind where no class is unseen.
ALL = "one class taken for another"


@dataclass(frozen=True)
class Confusion:
    """Pixels of one class that got another.

    Attributes:
        true: index of their class.
        predicted: index of the class that they got.
        pixels: how many they are.
        share: of the pixels of their class, in percent.
    """

    true: int
    predicted: int
    pixels: int
    share: float

    def text(self, names: Sequence[str]) -> str:
        """Say it: "red fence taken for red flag: 12.0 % of its pixels"."""
        taken = f"{names[self.true]} taken for {names[self.predicted]}"
        return f"{taken}: {self.share:.1f} % of its pixels"


def list_confusions(confusion: np.ndarray, pixels: np.ndarray) -> list[Confusion]:
    """Every pair of classes that are confused, the largest share first.

    Args:
        confusion: (K, K) counts, rows are true classes.
        pixels: (K,) labelled pixels of each class, also those that got no class.
    """
    pairs = [
        Confusion(int(i), int(j), int(confusion[i, j]), float(100 * confusion[i, j] / pixels[i]))
        for i, j in np.argwhere(confusion)
        if i != j
    ]
    return sorted(pairs, key=lambda pair: (-pair.share, -pair.pixels, pair.true, pair.predicted))


def group_confusions(
    pairs: Sequence[Confusion], seen: np.ndarray, count: int
) -> dict[str, list[Confusion]]:
    """The first ``count`` of each of `KINDS` that the partition has, or of `ALL`.

    Args:
        pairs: of `list_confusions`.
        seen: (K,) bool.
        count: of a kind.
    """
    if seen.all():
        return {ALL: list(pairs[:count])}
    groups = {}
    for (true, predicted), kind in KINDS.items():
        if {true, predicted} <= set(seen.tolist()):
            found = [p for p in pairs if (seen[p.true], seen[p.predicted]) == (true, predicted)]
            groups[kind] = found[:count]
    return groups


def confused_classes(
    groups: Mapping[str, Sequence[Confusion]], seen: np.ndarray, count: int
) -> list[int]:
    """At most ``count`` classes that take part in the largest confusions: seen, then unseen.

    Every kind has its turn, so that the many seen classes do not hide the unseen ones.

    Args:
        groups: kind -> confusions, of `group_confusions`.
        seen: (K,) bool.
        count: of K classes or more, all are taken.
    """
    chosen = set(range(len(seen))) if len(seen) <= count else set()
    for turn in zip_longest(*groups.values()):
        for pair in turn:
            more = chosen | ({pair.true, pair.predicted} if pair else set())
            chosen = more if len(more) <= count else chosen
    return sorted(chosen, key=lambda k: (not seen[k], k))


def kind_share(counts: np.ndarray, seen: np.ndarray, kind: str) -> float:
    """Percent of all seen, or all unseen, pixels that a kind of confusion takes.

    Args:
        counts: (K, K + 1), rows are true classes; the last column is pixels without a class.
        seen: (K,) bool.
        kind: of `KINDS`, or `ALL`.
    """
    kinds = {ALL: (True, True)} | {name: flags for flags, name in KINDS.items()}
    true, predicted = kinds[kind]
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    taken = wrong[seen == true, :-1][:, seen == predicted].sum()
    return float(100 * taken / max(counts[seen == true].sum(), 1))


def share_text(kind: str, share: str) -> str:
    """Say what share of which pixels a kind takes: "12.0 % of all unseen pixels"."""
    return f"{share} % of all {'labelled' if kind == ALL else kind.split()[0]} pixels"


def format_confusions(
    groups: Mapping[str, Sequence[Confusion]],
    shares: Mapping[str, float],
    names: Sequence[str],
    title: str,
) -> str:
    """Markdown with a table for each kind.

    Args:
        groups: kind -> confusions.
        shares: kind -> percent, of `kind_share`.
        names: of the K classes.
        title: heading.
    """
    head = ("class", "taken for", "% of its pixels", "pixels")
    lines = [f"# {title}", ""]
    for kind, pairs in groups.items():
        rows = [
            (names[pair.true], names[pair.predicted], f"{pair.share:.2f}", pair.pixels)
            for pair in pairs
        ]
        lines += [f"## {kind[0].upper()}{kind[1:]}", ""]
        lines += [f"{share_text(kind, f'{shares[kind]:.2f}')}.", ""]
        lines += [markdown_table(head, rows), ""]
    return "\n".join(lines)
