"""A prediction as a notebook shows it: pictures, and the shares of the classes below them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.html_page import render
from tagclip.visualization.panels import encode_jpeg, fit
from tagclip.visualization.prediction_page import legend_rows
from tagclip.visualization.segments import colorize_trusty, draw_segments

__all__ = ["prediction_html"]

# Longer side of a picture in pixels: three of them stand side by side, names can be read.
_SIZE = 352


def prediction_html(
    image: np.ndarray, prediction: Mapping[str, Any], vocabulary: Vocabulary
) -> str:
    """Show image, named segments and trusty map, whatever their size some 100 KB.

    It is part of a page, takes colours and fonts from there and needs nothing else.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: what `TagCLIPPredictor` returns for it.
        vocabulary: its K classes.
    """
    picture = fit(image, _SIZE)
    segments = draw_segments(picture, fit(prediction["sem_seg_labels"].numpy(), _SIZE), vocabulary)
    pictures = {"image": picture, "segments": segments}
    if "trusty" in prediction:
        trusty = colorize_trusty(fit(prediction["trusty"].numpy(), _SIZE))
        pictures["trusty map: P(seen class)"] = trusty
    rows, notes = legend_rows(prediction, vocabulary)
    return render(
        "prediction.html.j2",
        __package__,
        pictures={title: encode_jpeg(drawn) for title, drawn in pictures.items()},
        width=picture.shape[1],
        scale=colorize_trusty(np.linspace(0, 1, 9)).tolist() if "trusty" in prediction else None,
        count=len(vocabulary),
        rows=[row for row in rows if not row["is_absent"]],
        absent=[row["name"] for row in rows if row["is_absent"]],
        notes="; ".join(notes),
    )
