"""Images of the gallery: chosen by rank, so that good and bad results show alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog

from tagclip import TagCLIP, Vocabulary, ZeroShotDatasetMapper
from tagclip.data import read_image, read_label
from tagclip.errors import CheckpointError, DatasetError
from tagclip.evaluation import confusion_matrix, per_class, summarize
from tagclip.projects.minibench.report_run import Run
from tagclip.utils.panels import draw_legend, draw_panels, draw_trusty_bar, stack_pictures
from tagclip.utils.visualize import colorize_trusty, draw_segments, enlarge

__all__ = ["Predicted", "choose_images", "draw_gallery", "spread_ranks"]

_COUNT = 6
_SIZE = 288
# In percent: stored numbers may come from another device, whose rounding differs.
_TOLERANCE = 0.5


@dataclass(frozen=True)
class Predicted:
    """An image and what the model says.

    Attributes:
        title: its place in the ranking.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) int32 indices into the vocabulary, its ``ignore_index`` where unlabelled.
        labels: (H, W) int16 or int32 predicted indices.
        trusty: (H, W) float32 P(pixel belongs to a seen class), None without a trusty token.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    trusty: np.ndarray | None


def choose_images(run: Run, model: TagCLIP) -> tuple[list[Predicted], str]:
    """Rank the images of the test set by their own mIoU and take six at even distances.

    Only images with both seen and unseen classes take part, where there are such.

    Returns:
        The images, best first, and one sentence that says how they were chosen.

    Raises:
        CheckpointError: the model does not reach the stored result: they do not belong together.
        DatasetError: no image has a labelled pixel, or a file is missing or damaged.
    """
    samples = DatasetCatalog.get(run.dataset)
    mapper = ZeroShotDatasetMapper(run.cfg, is_train=False, dataset_name=run.dataset)
    predict_one = partial(_predict, model=model, mapper=mapper, vocabulary=run.vocabulary)
    ranking, both = _rank(run, samples, predict_one)
    images = []
    for rank in spread_ranks(len(ranking), _COUNT):
        score, sample = ranking[rank - 1]
        stem = Path(sample["file_name"]).stem
        place = {1: "best", len(ranking): "worst"}.get(rank, f"rank {rank}")
        title = f"{place} of {len(ranking)}: image {stem}, mIoU {score:.1f}"
        images.append(replace(predict_one(sample), title=title))
    kind = "images with seen and unseen classes" if both else "images"
    return images, (
        f"Shown: {len(images)} of the {len(ranking)} test {kind}, at even distances in their "
        "ranking by mIoU over the image's own classes, from best to worst."
    )


def spread_ranks(total: int, count: int) -> list[int]:
    """At most ``count`` ranks from 1 to ``total``, both included, evenly spaced."""
    return sorted({round(rank) for rank in np.linspace(1, total, count)})


def _predict(
    sample: dict[str, str], model: TagCLIP, mapper: ZeroShotDatasetMapper, vocabulary: Vocabulary
) -> Predicted:
    (output,) = model([mapper(sample)])
    trusty = output.get("trusty")
    return Predicted(
        title="",
        image=read_image(sample["file_name"]),
        truth=vocabulary.label_lut()[read_label(sample["sem_seg_file_name"])],
        labels=output["sem_seg_labels"].cpu().numpy(),
        trusty=None if trusty is None else trusty.float().cpu().numpy(),
    )


def _rank(
    run: Run, samples: Sequence[dict[str, str]], predict_one: Callable[[dict], Predicted]
) -> tuple[list[tuple[float, dict[str, str]]], bool]:
    """(mIoU, sample), best first, and whether these are the images with both kinds of classes."""
    seen = run.vocabulary.seen_mask
    scored: dict[bool, list[tuple[float, dict[str, str]]]] = {False: [], True: []}
    total = np.zeros((len(seen), len(seen)), dtype=np.int64)
    for sample in samples:
        image = predict_one(sample)
        confusion = confusion_matrix(image.truth, image.labels, len(seen))
        total += confusion
        present = confusion.any(axis=1)
        if present.any():
            score = float(np.nanmean(per_class(confusion)["IoU"]))
            scored[bool(present[seen].any() and present[~seen].any())].append((score, sample))
    if not total.any():
        raise DatasetError(
            f"dataset {run.dataset}: found 0 labelled pixels in {len(samples)} images, expected "
            "some; check its label files"
        )
    found, stored = summarize(total, None)["mIoU"], run.result["metrics"]["mIoU"]
    if abs(found - stored) > _TOLERANCE:
        raise CheckpointError(
            f"--run {run.folder}: its last checkpoint reaches mIoU {found:.2f}, expected the "
            f"{stored:.2f} of inference/{run.dataset}/metrics.json; evaluate the run again"
        )
    both = bool(scored[True])
    chosen = scored[True] if both else scored[False]
    return sorted(chosen, key=lambda pair: (-pair[0], pair[1]["file_name"])), both


def draw_gallery(images: Sequence[Predicted], vocabulary: Vocabulary) -> np.ndarray:
    """One row per image (itself, ground truth, prediction, trusty map) above the legend."""
    has_trusty = images[0].trusty is not None
    rows: list[list[np.ndarray | None]] = []
    for image in images:
        pixels = enlarge(image.image, _SIZE)
        row = [pixels]
        for labels in (image.truth, image.labels):
            row.append(draw_segments(pixels, enlarge(labels, _SIZE), vocabulary, alpha=1.0))
        if has_trusty:
            row.append(colorize_trusty(enlarge(image.trusty, _SIZE)))
        rows.append(row)
    titles = ["image", "ground truth", "prediction"]
    if has_trusty:
        titles.append("trusty map: P(pixel belongs to a seen class)")
        rows.append([None, None, None, draw_trusty_bar(rows[0][0].shape[1])])
    panels = draw_panels(rows, titles, [image.title for image in images])
    return stack_pictures([panels, draw_legend(vocabulary, panels.shape[1])])
