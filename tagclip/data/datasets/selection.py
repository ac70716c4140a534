"""Going on without the bad samples of a dataset (DATASETS.ON_BAD_SAMPLE skip)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from detectron2.data import DatasetCatalog
from tqdm import tqdm

from tagclip.data.label_io import check_label, read_image, read_label
from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import Vocabulary

__all__ = ["UsableSamples", "find_usable", "left_out", "skip_bad_samples"]

logger = logging.getLogger(__name__)

_EXAMPLES = 5


@dataclass(frozen=True)
class UsableSamples:
    """What is left of a dataset, and what is not.

    Attributes:
        samples: one dict per image: "file_name", "sem_seg_file_name", "image_id"; sorted.
        left_out: what is wrong -> the samples with it, as an error says it; never empty lists.
    """

    samples: list[dict[str, str]]
    left_out: dict[str, list[str]]

    @property
    def totals(self) -> dict[str, int]:
        """What is wrong -> how many samples."""
        return {kind: len(found) for kind, found in self.left_out.items()}

    def report(self, dataset: str) -> None:
        """Log how many samples are left out, with five examples of each kind.

        Raises:
            DatasetError: none is left.
        """
        for kind, found in self.left_out.items():
            examples = "; ".join(found[:_EXAMPLES])
            logger.warning("dataset %s: left out %d %s: %s", dataset, len(found), kind, examples)
        if not self.samples:
            counts = ", ".join(f"{count} {kind}" for kind, count in self.totals.items())
            raise DatasetError(
                f"dataset {dataset}: found 0 usable samples ({counts}), expected some; see "
                "tools/validate_dataset.py"
            )


def find_usable(
    dataset: str,
    images: Mapping[str, str],
    labels: Mapping[str, str],
    vocabulary: Vocabulary,
    max_pixels: int,
) -> UsableSamples:
    """Read every image and label file once, in threads; leave out what training would refuse.

    Args:
        dataset: its name, for the progress bar.
        images, labels: path by name of the sample.
        vocabulary: full class list of the label files.
        max_pixels: images with more pixels are bad; 0 sets no limit.
    """
    pairs = [
        {"file_name": images[key], "sem_seg_file_name": labels[key], "image_id": key}
        for key in sorted(images.keys() & labels.keys())
    ]

    def damage(sample: dict[str, str]) -> str:
        path = sample["sem_seg_file_name"]
        try:
            size = read_image(sample["file_name"], max_pixels=max_pixels).shape[:2]
            check_label(read_label(path), path, vocabulary, size)
        except DatasetError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(damage, pairs)
        found = list(tqdm(results, total=len(pairs), desc=f"{dataset}: read", disable=None))
    left_out = {
        "images without label": sorted(images.keys() - labels.keys()),
        "labels without image": sorted(labels.keys() - images.keys()),
        "unusable files": [text for text in found if text],
    }
    return UsableSamples(
        [sample for sample, text in zip(pairs, found, strict=True) if not text],
        {kind: samples for kind, samples in left_out.items() if samples},
    )


def skip_bad_samples(name: str, max_pixels: int | None) -> None:
    """Let a dataset leave out its bad samples when it is listed; does nothing to others than ours.

    The first listing reads every file once. What is left out is logged.

    Args:
        name: of a registered dataset.
        max_pixels: images with more pixels are bad, too (0: no limit); None refuses a dataset with
            bad samples, as at first.
    """
    files = DatasetCatalog[name] if name in DatasetCatalog.list() else None
    if getattr(files, "max_pixels", max_pixels) != max_pixels:
        DatasetCatalog[name] = replace(files, max_pixels=max_pixels)


def left_out(name: str) -> dict[str, int]:
    """What is wrong -> how many samples of a dataset its last listing left out for it."""
    cache = getattr(DatasetCatalog[name], "cache", ()) if name in DatasetCatalog.list() else ()
    return cache[0].totals if cache else {}
