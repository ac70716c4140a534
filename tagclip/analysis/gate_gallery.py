"""Analyzed images: labels with the gate and without beside the trusty map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tagclip.analysis.gate_analysis import contest, ungated
from tagclip.analysis.result_images import (
    Predicted,
    Ranked,
    classes_on,
    draw_gallery,
    spread_ranks,
)
from tagclip.analysis.run_analysis import AnalyzedRun
from tagclip.data import read_image, read_indices

__all__ = ["draw_gate_gallery"]

# Longer side of a panel, in pixels.
_PANEL_SIZE = 256


def draw_gate_gallery(run: AnalyzedRun, count: int) -> np.ndarray:
    """Draw images at even distances in the ranking, with the gate and without.

    With seen and unseen classes, where there are such. Labels without the gate are those at their
    own best bias, on all images.

    Args:
        run: with the ranking.
        count: at most.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    ranking = [image for image in run.ranking if image.has_both] or run.ranking
    none = run.analysis.curves["none"]
    best = float(none.biases[none.best()])
    ranks = spread_ranks(len(ranking), count)
    images = [_read_image(run, ranking[rank - 1], best) for rank in ranks]
    titles = (
        f"gate {run.gate['mode']}, bias {run.gate['bias']:g}",
        f"no gate, best bias {best:.2f}",
    )
    listed = classes_on(images, run.vocabulary)
    return draw_gallery(images, run.vocabulary, _PANEL_SIZE, listed, titles)


def _read_image(run: AnalyzedRun, image: Ranked, best: float) -> Predicted:
    """Labels with the gate, and those without it at a bias."""
    sample = image.sample
    with torch.inference_mode():
        fusion, shape = run.saved.read(sample["file_name"])
        trusty = fusion.trusty(shape)
        gated = contest(fusion, shape).labels(run.gate["bias"]).reshape(shape)
        plain = contest(ungated(fusion), shape).labels(best).reshape(shape)
    return Predicted(
        title=f"{Path(sample['file_name']).name}: mIoU {image.score:.1f}",
        image=read_image(sample["file_name"]),
        truth=read_indices(
            sample["sem_seg_file_name"], run.vocabulary, shape, image=sample["file_name"]
        ),
        labels=gated,
        trusty=None if trusty is None else trusty.numpy(),
        others=(plain,),
    )
