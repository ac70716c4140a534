"""What a prediction looks like: page of panels, entry of a json, rows of a legend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.panels import (
    draw_legend,
    draw_panels,
    draw_trusty_bar,
    fit,
    legend_notes,
    stack_pictures,
)
from tagclip.visualization.segments import colorize_trusty, draw_segments, legend_names

__all__ = [
    "OTHER",
    "draw_prediction",
    "legend_rows",
    "summarize_prediction",
]

OTHER = "other"
_OTHER_NOTE = "other: a class that is not shown won, or none was likely enough"
# Room for the titles of narrow panels.
_NARROWEST = 190
# Room for the notes below the legend.
_NOTES_WIDTH = 800


def draw_prediction(
    image: np.ndarray,
    prediction: Mapping[str, Any],
    vocabulary: Vocabulary,
    size: int = 512,
    classes: Iterable[int] | None = None,
) -> np.ndarray:
    """Draw image, named segments, confidence and trusty map side by side above a legend.

    Images twice as wide as high, or wider, have them below each other.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: what `TagCLIPPredictor` returns for it.
        vocabulary: its K classes.
        size: of a panel's longer side, in pixels, see `fit`.
        classes: what the legend lists, -1 for "other"; None: what is on the image.

    Returns:
        (height, width, 3) uint8 RGB; with `classes` given, equal for images of equal size.
    """
    labels = prediction["sem_seg_labels"].numpy()
    picture = fit(image, size)
    segments = draw_segments(picture, fit(labels, size), vocabulary)
    panels = {"image": picture, "segments": segments}
    height, width = picture.shape[:2]
    for key, title, ends in (
        ("sem_seg_scores", "confidence: score of the winner", ("0", "1: sure")),
        ("trusty", "trusty map: P(seen class)", ("0: unseen", "1: seen")),
    ):
        if key in prediction:
            colors = colorize_trusty(fit(prediction[key].numpy(), size))
            bar = draw_trusty_bar(max(width, _NARROWEST), *ends)
            panels[title] = stack_pictures([colors, bar])
    page = _arrange(panels, is_wide=width >= 2 * height)
    listed = np.unique(labels).tolist() if classes is None else list(classes)
    named = [k for k in listed if k >= 0]
    notes_width = max(page.shape[1], _NOTES_WIDTH)
    legend = draw_legend(vocabulary, notes_width, named, -1 in listed, (OTHER, _OTHER_NOTE))
    return stack_pictures([page, legend])


def _arrange(panels: Mapping[str, np.ndarray], is_wide: bool) -> np.ndarray:
    blank = np.zeros((0, _NARROWEST, 3), dtype=np.uint8)
    pictures = [stack_pictures([picture, blank]) for picture in panels.values()]
    if not is_wide:
        return draw_panels([pictures], list(panels))
    pairs = zip(pictures, panels, strict=True)
    return stack_pictures([draw_panels([[picture]], [title]) for picture, title in pairs])


def summarize_prediction(prediction: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """Count what is on an image.

    Returns:
        ``height`` and ``width`` in pixels; ``classes``: id (see `label_image`), name, seen (as in
        the vocabulary: for the gate), share of the pixels and mean score of each class on the
        image, largest first;
        ``other``: share of the pixels.
    """
    labels = prediction["sem_seg_labels"].numpy()
    scores = prediction["sem_seg_scores"].float().numpy()
    index = labels.ravel().astype(np.int64) + 1
    counts = np.bincount(index, minlength=len(vocabulary) + 1)
    sums = np.bincount(index, scores.ravel(), minlength=len(vocabulary) + 1)
    order = sorted(
        (k for k in range(len(vocabulary)) if counts[k + 1]), key=lambda k: -counts[k + 1]
    )
    return {
        "height": labels.shape[0],
        "width": labels.shape[1],
        "classes": [
            {
                "id": vocabulary.classes[k].id,
                "name": vocabulary.names[k],
                "seen": bool(vocabulary.seen_mask[k]),
                "share": round(float(counts[k + 1] / labels.size), 6),
                "mean_score": round(float(sums[k + 1] / counts[k + 1]), 4),
            }
            for k in order
        ],
        OTHER: round(float(counts[0] / labels.size), 6),
    }


def legend_rows(
    prediction: Mapping[str, Any], vocabulary: Vocabulary
) -> tuple[list[dict[str, Any]], list[str]]:
    """List classes for a legend with shares, and say what its stars, numbers and "other" are.

    Returns:
        Rows of all K classes, largest first, those that are not on the image in their order behind
        them, and of "other" if there is some: ``name`` as in pictures, ``color``, ``seen``,
        ``is_absent``, ``share`` and ``mean_score``; this is None for absent classes and for
        "other", whose ``color`` is None, too. And the notes.
    """
    summary = summarize_prediction(prediction, vocabulary)
    present = {row["name"]: row for row in summary["classes"]}
    columns = legend_names(vocabulary), vocabulary.colors.tolist(), vocabulary.seen_mask.tolist()
    absent = {"is_absent": True, "share": 0.0, "mean_score": None}
    rows = {
        name: {"name": shown, "color": color, "seen": seen, **absent}
        for name, shown, color, seen in zip(vocabulary.names, *columns, strict=True)
    }
    for name, row in present.items():
        found = {"share": row["share"], "mean_score": row["mean_score"]}
        rows[name] |= {"is_absent": False, **found}
    listed = [*(rows[name] for name in present), *(rows[n] for n in rows if n not in present)]
    notes = legend_notes(vocabulary)
    if summary[OTHER]:
        other = {"name": OTHER, "color": None, "seen": True, "is_absent": False}
        listed.append({**other, "share": summary[OTHER], "mean_score": None})
        notes.append(_OTHER_NOTE)
    return listed, notes
