"""What ``metrics.json`` says of counted pixels, and its tables in the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from tagclip.evaluation.metrics import defined_classes, per_class, summarize
from tagclip.evaluation.results import absent_note, format_table, metric_rows
from tagclip.structures.vocabulary import Vocabulary

__all__ = ["evaluation_content", "headline_rows", "log_content"]

logger = logging.getLogger(__name__)


def evaluation_content(
    dataset: str,
    vocabulary: Vocabulary,
    confusion: np.ndarray,
    images: int,
    run: Mapping[str, Any],
    trained: np.ndarray | None = None,
    left_out: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return the content of ``metrics.json``, nan where undefined.

    Args:
        dataset: registered name.
        vocabulary: K classes; its partition, if any, is that of the split.
        confusion: (K, K + 1) pixels, rows are true classes; the last column got no class.
        images: how many were counted.
        run: what is recorded about where the predictions come from.
        trained: (K,) bool, classes whose masks trained what predicts: they are called seen. Where
            the split says otherwise, metrics by the split follow. None: the split decides.
        left_out: what is wrong -> samples of the dataset that were not listed for it.
    """
    by_split, split = None, _split(vocabulary)
    seen = split if trained is None else trained
    values, metrics = per_class(confusion), summarize(confusion, seen)
    if split is not None and not np.array_equal(seen, split):
        by_split = summarize(confusion, split)
    classes = [
        {
            "name": name,
            "seen": None if seen is None else bool(seen[k]),
            "IoU": float(values["IoU"][k]),
            "ACC": float(values["ACC"][k]),
            "pixels": int(confusion[k].sum()),
            "other": int(confusion[k, -1]),
        }
        for k, name in enumerate(vocabulary.names)
    ]
    return {
        "dataset": dataset,
        "images": images,
        "left_out": dict(left_out or {}),
        "split": vocabulary.split,
        "vocabulary": vocabulary.name,
        "vocabulary_fingerprint": vocabulary.fingerprint,
        "metrics": metrics,
        **({"note": note} if (note := absent_note(metrics)) else {}),
        "classes_averaged": defined_classes(confusion, seen),
        "metrics_by_split": by_split,
        "classes_averaged_by_split": by_split and defined_classes(confusion, split),
        "classes_without_pixels": [row["name"] for row in classes if not row["pixels"]],
        "run": dict(run),
        "classes": classes,
        "confusion": confusion[:, :-1].tolist(),
    }


def log_content(content: Mapping[str, Any], vocabulary: Vocabulary, expected: int) -> None:
    """Log the tables, and what their reader must know.

    Args:
        content: of `evaluation_content`.
        vocabulary: the K classes.
        expected: images of the dataset.
    """
    dataset, found = content["dataset"], content["images"]
    if found != expected:
        logger.warning("%s: evaluated %d images, the dataset has %d", dataset, found, expected)
    if undefined := content["classes_without_pixels"]:
        logger.info("IoU undefined (no labelled pixel) for: %s", ", ".join(undefined))
    table = format_table(*_numbers(content))
    grouped = ", seen: masks trained the model" * (content["metrics_by_split"] is not None)
    logger.info("%s, %d images%s\n%s", dataset, found, grouped, table)
    if content["metrics_by_split"] is not None:
        averaged = content["classes_averaged_by_split"]
        listed = _listed(len(vocabulary), _split(vocabulary))
        table = format_table(content["metrics_by_split"], averaged, listed)
        logger.info("%s, seen as in split %s\n%s", dataset, content["split"], table)


def _split(vocabulary: Vocabulary) -> np.ndarray | None:
    return None if vocabulary.seen is None else vocabulary.seen_mask


def headline_rows(content: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """`metric_rows` of the content of ``metrics.json``."""
    return metric_rows(*_numbers(content))


def _numbers(
    content: Mapping[str, Any],
) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
    """Metrics, classes that each mean averages, and classes of the list that it is of."""
    flags = [row["seen"] for row in content["classes"]]
    seen = None if None in flags else np.array(flags)
    return content["metrics"], content["classes_averaged"], _listed(len(flags), seen)


def _listed(classes: int, seen: np.ndarray | None) -> dict[str, int]:
    # Of a class list of which each class has a pixel.
    return defined_classes(np.eye(classes), seen)
