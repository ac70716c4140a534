"""Analyzed images: labels with and without the gate beside the trusty map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagclip.analysis.gate_analysis import contest, ungated
from tagclip.analysis.result_images import Ranked, fit, spread_ranks
from tagclip.analysis.run_analysis import AnalyzedRun
from tagclip.data import read_image, read_indices
from tagclip.visualization.panels import draw_legend, draw_panels, draw_trusty_bar, stack_pictures
from tagclip.visualization.segments import colorize_trusty, draw_segments

__all__ = ["choose_images", "draw_images"]


def choose_images(run: AnalyzedRun, count: int) -> list[Ranked]:
    """Images at even distances in the ranking, with seen and unseen classes where there are such.

    Args:
        run: with the ranking.
        count: at most.
    """
    ranking = [image for image in run.ranking if image.has_both] or run.ranking
    return [ranking[rank - 1] for rank in spread_ranks(len(ranking), count)]


def draw_images(run: AnalyzedRun, images: Sequence[Ranked], size: int = 256) -> np.ndarray:
    """One row per image: itself, truth, labels with the gate and without, trusty map.

    Labels without the gate are those at their own best bias, on all images.

    Args:
        run: whose logits to draw.
        images: at least one.
        size: of a panel's longer side in pixels, see `fit`.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    none = run.analysis.curves["none"]
    best = float(none.biases[none.best()])
    titles = ["image", "ground truth", f"gate {run.gate['mode']}, bias {run.gate['bias']:g}"]
    titles.append(f"no gate, best bias {best:.2f}")
    rows, shown, has_trusty = [], set(), False
    for image in images:
        row, trusty, classes = _row(run, image.sample, best, size)
        shown |= classes
        if trusty is not None:
            has_trusty = True
            row.append(colorize_trusty(fit(trusty, size)))
        rows.append(row)
    if has_trusty:
        titles.append("trusty map: P(seen)")
        rows.append([*[None] * 4, draw_trusty_bar(max(row[4].shape[1] for row in rows))])
    names = [f"{Path(image.sample['file_name']).name}: mIoU {image.score:.1f}" for image in images]
    panels = draw_panels(rows, titles, names)
    return stack_pictures([panels, draw_legend(run.vocabulary, panels.shape[1], sorted(shown))])


def _row(
    run: AnalyzedRun, sample: dict[str, Any], best: float, size: int
) -> tuple[list[np.ndarray], np.ndarray | None, set[int]]:
    """Pictures of an image, its trusty map, and the classes on them."""
    with torch.inference_mode():
        fusion, shape = run.saved.read(sample["file_name"])
        trusty = fusion.trusty(shape)
        gated = contest(fusion, shape).labels(run.gate["bias"]).reshape(shape)
        plain = contest(ungated(fusion), shape).labels(best).reshape(shape)
    truth = read_indices(sample["sem_seg_file_name"], run.vocabulary, shape)
    pixels = fit(read_image(sample["file_name"]), size)
    row = [pixels]
    for labels in (truth, gated, plain):
        row.append(draw_segments(pixels, fit(labels, size), run.vocabulary, alpha=1.0))
    found = {int(k) for labels in (truth, gated, plain) for k in np.unique(labels)}
    return (
        row,
        None if trusty is None else trusty.numpy(),
        {k for k in found if 0 <= k < len(run.vocabulary)},
    )
