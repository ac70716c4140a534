"""The table of `tagclip minibench novelty`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tagclip.projects.minibench.table import mean_and_spread, paired_interval
from tagclip.projects.minibench.table_runs import SPLITS

__all__ = ["ROWS", "format_novelty"]

_FIGURES = ("AUROC", "AUPR", "FPR95", "S", "U", "hIoU")


def _source(number: str) -> str:
    return f"([{number}](https://arxiv.org/abs/{number}))"


# Name of a score -> label, and whether it knows the words of the unseen classes.
ROWS = {
    "no map": ("no map", ""),
    "softmax": (f"1 - largest softmax probability {_source('1610.02136')}", "no"),
    "logit": (f"negative largest logit {_source('1911.11132')}", "no"),
    "energy": (f"energy of the logits {_source('2010.03759')}", "no"),
    "entropy": (f"entropy of the softmax {_source('2012.06575')}", "no"),
    "mahalanobis": (f"Mahalanobis distance to the nearest class {_source('1807.03888')}", "no"),
    "relative mahalanobis": (f"the same minus that to all patches {_source('2106.09022')}", "no"),
    "neighbour": (f"50th nearest seen patch {_source('2204.06507')}", "no"),
    "outliers": ("head trained on made outliers", "no"),
    "d1": ("d_1, model's own logits", "yes"),
    "d2": ("d_2, plain CLIP", "yes"),
    "d3": ("d_3, densities", "yes"),
    "episodes": ("head trained in episodes, without d_1", "yes"),
    "d1 + episodes": ("d_1 and the head trained in episodes", "yes"),
    "relative": ("**relative map**: d_1, d_2, d_3", "yes"),
}


def format_novelty(results: Sequence[dict[str, Any]]) -> str:
    """Return Markdown, a table for each split.

    Args:
        results: what `measure` returned, all of one subset.
    """
    lines: list[str] = []
    for split in SPLITS:
        own = [result for result in results if result["split"] == split]
        if own:
            seeds = ", ".join(str(seed) for seed in sorted(result["seed"] for result in own))
            lines += [f"**{split}**, `minibench_{own[0]['subset']}`, seeds {seeds}:", ""]
            lines += [*_rows([result["scores"] for result in own]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _rows(scores: Sequence[dict[str, dict[str, float]]]) -> Iterator[str]:
    yield (
        "| score | knows the words | AUROC | AUPR | FPR at 95 % TPR | S | U | hIoU "
        "| hIoU minus relative map |"
    )
    yield "|" + 9 * "---|"
    reference = [own["relative"]["hIoU"] for own in scores]
    for name, (label, knows) in ROWS.items():
        found = [own[name] for own in scores]
        cells = [
            mean_and_spread([figures[key] for figures in found]) if key in found[0] else ""
            for key in _FIGURES
        ]
        pairs = zip(found, reference, strict=True)
        gains = [figures["hIoU"] - other for figures, other in pairs]
        gain = "" if name == "relative" or len(gains) < 2 else paired_interval(gains)
        yield f"| {' | '.join([label, knows, *cells, gain])} |"
