"""The result as the page shows it: pictures, scores under the pointer, table, files."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tagclip.data.label_image import label_image
from tagclip.projects.webdemo.session import EncodedImage, Settings
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.text import json_text
from tagclip.visualization.html_page import render
from tagclip.visualization.panels import fit, legend_notes
from tagclip.visualization.prediction_page import OTHER, summarize_prediction
from tagclip.visualization.segments import (
    colorize_trusty,
    draw_segments,
    legend_names,
    marked_names,
)

__all__ = ["render_result", "write_result"]

_TOP_K = 3
# Small images are enlarged until names can be read.
_DRAWN_SIZE = 512
# Longer side of the grid of scores that the browser gets: some 250 KB at most.
_GRID_SIZE = 192
_OUTSIDE = 255
_OTHER_NOTE = f"{OTHER}: a context word won, or the score is below the background threshold"


def render_result(encoded: EncodedImage, settings: Settings, opacity: float) -> str:
    """Draw the result.

    Args:
        encoded: the image and its logits.
        settings: of the sliders.
        opacity: of the colours, 0 to 1.

    Returns:
        HTML: pictures, the scores for `hover.js`, and the table of classes.
    """
    vocabulary = encoded.vocabulary
    top_k = min(_TOP_K, len(vocabulary) + len(encoded.context))
    prediction = encoded.predict(settings, encoded.picture.shape[:2], top_k)
    size = max(_DRAWN_SIZE, *encoded.picture.shape)
    picture, labels = (
        fit(values, size) for values in (encoded.picture, prediction["sem_seg_labels"].numpy())
    )
    trusty = None
    if "trusty" in prediction:
        trusty = colorize_trusty(fit(prediction["trusty"].numpy(), size))
    rows, notes = _legend(prediction, vocabulary)
    return render(
        "result.html.j2",
        __package__,
        segments=_jpeg(draw_segments(picture, labels, vocabulary, opacity)),
        trusty=None if trusty is None else _jpeg(trusty),
        scale=colorize_trusty(np.linspace(0, 1, 9)).tolist(),
        scores=json_text(_hover_data(encoded, prediction)),
        rows=rows,
        notes="; ".join(notes),
    )


def write_result(encoded: EncodedImage, settings: Settings, folder: Path) -> list[Path]:
    """Write NAME_labels.png and NAME.json at the image's own size.

    Args:
        encoded, settings: as for `render_result`.
        folder: exists.

    Returns:
        The files. Label values are ``class_ids`` of the json, which are those of a class list and
        0 to K-1 for words, and its ``ignore_label`` is "other".
    """
    vocabulary, stem = encoded.vocabulary, Path(encoded.name).stem
    prediction = encoded.predict(settings, encoded.size)
    labels, summary = folder / f"{stem}_labels.png", folder / f"{stem}.json"
    label_image(prediction["sem_seg_labels"].numpy(), vocabulary).save(labels)
    content = {
        "image": encoded.name,
        "class_names": vocabulary.names,
        "class_ids": [entry.id for entry in vocabulary.classes],
        "seen": vocabulary.seen_mask.tolist(),
        "context": encoded.context,
        "ignore_label": vocabulary.ignore_label,
        "gate": settings.gate,
        "seen_bias": settings.seen_bias,
        "background_threshold": settings.background_threshold,
        **summarize_prediction(prediction, vocabulary),
    }
    summary.write_text(json_text(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return [labels, summary]


def _hover_data(encoded: EncodedImage, prediction: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """Classes and scores on a grid, in base64: one byte per cell and value, in hundredths."""
    height, width = prediction["sem_seg_labels"].shape
    cells = np.ix_(*(_middles(length, max(height, width)) for length in (height, width)))
    grid = {key: value.float().numpy()[..., *cells] for key, value in prediction.items()}
    labels = np.where(grid["sem_seg_labels"] < 0, _OUTSIDE, grid["sem_seg_labels"])
    data = {
        "height": labels.shape[0],
        "width": labels.shape[1],
        "names": [*marked_names(encoded.vocabulary), *encoded.context],
        "classes": len(encoded.vocabulary),
        "labels": _base64(labels),
        "top": _base64(grid["top_labels"]),
        "scores": _base64(np.rint(100 * np.clip(grid["top_scores"], 0, 1))),
    }
    if "trusty" in grid:
        data["trusty"] = _base64(np.rint(100 * grid["trusty"]))
    return data


def _middles(length: int, longer: int) -> np.ndarray:
    """Rows, or columns, in the middle of the cells of the grid."""
    count = length if longer <= _GRID_SIZE else max(1, length * _GRID_SIZE // longer)
    return (np.arange(count) * length + length // 2) // count


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.astype(np.uint8).tobytes()).decode()


def _jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def _legend(
    prediction: Mapping[str, torch.Tensor], vocabulary: Vocabulary
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of all K classes, those on the image first, and of "other"; and notes on them."""
    summary = summarize_prediction(prediction, vocabulary)
    present = {row["name"]: row for row in summary["classes"]}
    order = [*present, *(name for name in vocabulary.names if name not in present)]
    shown = dict(zip(vocabulary.names, legend_names(vocabulary), strict=True))
    seen = dict(zip(vocabulary.names, vocabulary.seen_mask.tolist(), strict=True))
    colors = dict(zip(vocabulary.names, vocabulary.colors.tolist(), strict=True))
    rows = []
    for name in order:
        found = present.get(name)
        rows.append({
            "name": shown[name],
            "color": colors[name],
            "kind": "unseen " * (not seen[name]) + "absent" * (found is None),
            "share": found["share"] if found else 0.0,
            "score": f"{found['mean_score']:.2f}" if found else "",
        })  # fmt: skip
    notes = legend_notes(vocabulary)
    if summary[OTHER]:
        other = {"name": OTHER, "color": None, "kind": "", "share": summary[OTHER], "score": ""}
        rows.append(other)
        notes.append(_OTHER_NOTE)
    return rows, notes
