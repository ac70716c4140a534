"""Images of the gallery: chosen by rank, so that good and bad results show alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog

from tagclip import TagCLIP, Vocabulary, ZeroShotDatasetMapper
from tagclip.analysis.result_images import (
    Predicted,
    Ranked,
    draw_gallery,
    rank_images,
    spread_ranks,
)
from tagclip.data import read_image, read_indices
from tagclip.errors import CheckpointError, DatasetError
from tagclip.evaluation import summarize
from tagclip.projects.minibench.report_run import TrainedRun

__all__ = ["Predicted", "choose_images", "draw_gallery", "spread_ranks"]

_COUNT = 6
# In percent: stored numbers may come from another device, whose rounding differs.
_TOLERANCE = 0.5


def choose_images(run: TrainedRun, model: TagCLIP) -> tuple[list[Predicted], str]:
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
        ranked = ranking[rank - 1]
        stem = Path(ranked.sample["file_name"]).stem
        place = {1: "best", len(ranking): "worst"}.get(rank, f"rank {rank}")
        title = f"{place} of {len(ranking)}: image {stem}, mIoU {ranked.score:.1f}"
        images.append(replace(predict_one(ranked.sample), title=title))
    kind = "images with seen and unseen classes" if both else "images"
    return images, (
        f"Shown: {len(images)} of the {len(ranking)} test {kind}, at even distances in their "
        "ranking by mIoU over the image's own classes, from best to worst."
    )


def _predict(
    sample: dict[str, str], model: TagCLIP, mapper: ZeroShotDatasetMapper, vocabulary: Vocabulary
) -> Predicted:
    (output,) = model([mapper(sample)])
    trusty, image = output.get("trusty"), read_image(sample["file_name"])
    return Predicted(
        title="",
        image=image,
        truth=read_indices(sample["sem_seg_file_name"], vocabulary, image.shape[:2]),
        labels=output["sem_seg_labels"].cpu().numpy(),
        trusty=None if trusty is None else trusty.float().cpu().numpy(),
    )


def _rank(
    run: TrainedRun, samples: Sequence[dict[str, str]], predict_one: Callable[[dict], Predicted]
) -> tuple[list[Ranked], bool]:
    """The images, best first, and whether these are those with both kinds of classes."""
    ranking, total = rank_images(samples, predict_one, run.vocabulary.seen_mask)
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
    both = [image for image in ranking if image.has_both]
    return both or ranking, bool(both)
