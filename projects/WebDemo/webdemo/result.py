"""The result as the page shows it: pictures, scores under the pointer, table, files."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from tagclip.data.label_image import label_image
from tagclip.data.label_notes import words_in
from tagclip.projects.webdemo.session import EncodedImage, Settings
from tagclip.projects.webdemo.turns import current_turn
from tagclip.utils.files import write_atomic
from tagclip.utils.text import json_text
from tagclip.visualization.html_page import render
from tagclip.visualization.panels import encode_jpeg, fit, save_png
from tagclip.visualization.prediction_page import legend_rows, summarize_prediction
from tagclip.visualization.segments import colorize_trusty, draw_segments, marked_names

__all__ = ["render_result", "write_result"]

_TOP_K = 3
# Small images are enlarged until names can be read.
_DRAWN_SIZE = 512
# Longer side of the grid of scores that the browser gets: some 250 KB at most.
_GRID_SIZE = 192
_OUTSIDE = 255


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
    rows, notes = legend_rows(prediction, vocabulary)
    return render(
        "result.html.j2",
        __package__,
        segments=encode_jpeg(draw_segments(picture, labels, vocabulary, opacity)),
        trusty=None if trusty is None else encode_jpeg(trusty),
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
    prediction = encoded.predict(settings, encoded.size)
    with current_turn().work_aside():
        return _written(encoded, prediction, settings, folder)


def _written(
    encoded: EncodedImage,
    prediction: Mapping[str, torch.Tensor],
    settings: Settings,
    folder: Path,
) -> list[Path]:
    vocabulary, stem = encoded.vocabulary, Path(encoded.name).stem
    labels, summary = folder / f"{stem}_labels.png", folder / f"{stem}.json"
    indices = prediction["sem_seg_labels"].numpy()
    save_png(labels, label_image(indices, vocabulary), words=words_in(indices, vocabulary))
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
        "background": encoded.background,
        **summarize_prediction(prediction, vocabulary),
    }
    write_atomic(summary, json_text(content, indent=1, ensure_ascii=False) + "\n")
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
