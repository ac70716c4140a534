"""The result as the page shows it: pictures, scores under the pointer, table, files."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tagclip.projects.webdemo.session import EncodedImage, Settings
from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.panels import UNSEEN_NOTE
from tagclip.visualization.prediction_page import OTHER, label_image, summarize_prediction
from tagclip.visualization.segments import colorize_trusty, draw_segments, enlarge, marked_names

__all__ = ["EMPTY", "render_result", "write_result"]

EMPTY = '<p class="empty">Choose an image, write words and press <b>Segment</b>.</p>'
_TOP_K = 3
# Small images are enlarged by a whole factor until names can be read; strips are stretched.
_DRAWN_SIZE = 512
_THINNEST = 24
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
    figures = [_figure(_overlay(encoded.picture, prediction, vocabulary, opacity), "Segments")]
    if "trusty" in prediction:
        colors = _fitted(colorize_trusty(prediction["trusty"].numpy()))
        figures.append(_figure(colors, "Trusty map: P(seen class)", _scale()))
    scores = json.dumps(_hover_data(encoded, prediction))
    return (
        f'<div class="pictures" data-scores="{escape(scores)}">{"".join(figures)}</div>'
        '<div class="tip" hidden></div>' + _table(prediction, vocabulary)
    )


def write_result(encoded: EncodedImage, settings: Settings, folder: Path) -> list[Path]:
    """Write NAME_labels.png and NAME.json at the image's own size.

    Args:
        encoded, settings: as for `render_result`.
        folder: exists.

    Returns:
        The files. Label values are indices into ``class_names`` of the json, 255 (65535 above
        255 classes) is "other".
    """
    vocabulary, stem = encoded.vocabulary, Path(encoded.name).stem
    prediction = encoded.predict(settings, encoded.size)
    labels, summary = folder / f"{stem}_labels.png", folder / f"{stem}.json"
    label_image(prediction["sem_seg_labels"].numpy(), vocabulary).save(labels)
    content = {
        "image": encoded.name,
        "class_names": vocabulary.names,
        "seen": vocabulary.seen_mask.tolist(),
        "context": encoded.context,
        "ignore_label": vocabulary.ignore_label,
        "gate": settings.gate,
        "seen_bias": settings.seen_bias,
        "background_threshold": settings.background_threshold,
        **summarize_prediction(prediction, vocabulary),
    }
    summary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return [labels, summary]


def _overlay(
    picture: np.ndarray,
    prediction: Mapping[str, torch.Tensor],
    vocabulary: Vocabulary,
    opacity: float,
) -> np.ndarray:
    labels = _fitted(prediction["sem_seg_labels"].numpy())
    return draw_segments(_fitted(picture), labels, vocabulary, opacity)


def _fitted(picture: np.ndarray) -> np.ndarray:
    """Enlarge a small picture, and the thin side of a strip."""
    picture = enlarge(picture, _DRAWN_SIZE)
    for axis in (0, 1):
        picture = picture.repeat(-(-_THINNEST // picture.shape[axis]), axis=axis)
    return picture


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


def _figure(picture: np.ndarray, title: str, below: str = "") -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=92, subsampling=0)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><img src="{source}" '
        f'alt="{escape(title)}" draggable="false">{below}</figure>'
    )


def _scale() -> str:
    """Legend of the trusty map."""
    colors = colorize_trusty(np.linspace(0, 1, 9))
    stops = ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in colors)
    return (
        f'<div class="scale" style="background: linear-gradient(to right, {stops})"></div>'
        '<div class="ends"><span>0: unseen</span><span>0.5</span><span>1: seen</span></div>'
    )


def _table(prediction: Mapping[str, torch.Tensor], vocabulary: Vocabulary) -> str:
    """Legend: all K classes, those on the image first, and "other"."""
    summary = summarize_prediction(prediction, vocabulary)
    present = {row["name"]: row for row in summary["classes"]}
    order = [*present, *(name for name in vocabulary.names if name not in present)]
    marked = dict(zip(vocabulary.names, marked_names(vocabulary), strict=True))
    colors = dict(zip(vocabulary.names, vocabulary.colors.tolist(), strict=True))
    rows = []
    for name in order:
        red, green, blue = colors[name]
        share = present.get(name, {}).get("share", 0.0)
        score = f"{present[name]['mean_score']:.2f}" if name in present else ""
        kind = "unseen" if marked[name] != name else ""
        kind += "" if name in present else " absent"
        swatch = f'<span class="swatch" style="background: rgb({red} {green} {blue})"></span>'
        rows.append(_row(kind, swatch, marked[name], share, score))
    notes = [UNSEEN_NOTE] * (not vocabulary.seen_mask.all())
    if summary[OTHER]:
        swatch = '<span class="swatch hatch"></span>'
        rows.append(_row("", swatch, OTHER, summary[OTHER], ""))
        notes.append(_OTHER_NOTE)
    return (
        "<table><thead><tr><th>class</th><th>share of the pixels</th><th>mean score</th></tr>"
        f"</thead><tbody>{''.join(rows)}</tbody></table>"
        f'<p class="notes">{escape("; ".join(notes))}</p>'
    )


def _row(kind: str, swatch: str, name: str, share: float, score: str) -> str:
    return (
        f'<tr class="{kind}"><td>{swatch}{escape(name)}</td>'
        f"<td>{100 * share:.1f} %</td><td>{score}</td></tr>"
    )
