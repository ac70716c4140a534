"""Going on without some samples of a dataset: bad ones, or images that show unseen classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from tagclip.data.datasets.walk import map_files
from tagclip.data.image_io import read_image
from tagclip.data.label_io import check_label, read_label
from tagclip.data.label_notes import OtherWords
from tagclip.data.label_remedies import mask_remedy
from tagclip.errors import ConfigError, DatasetError
from tagclip.structures.vocabulary import Vocabulary

__all__ = [
    "UsableSamples",
    "find_usable",
    "left_out",
    "paired_samples",
    "refuse_masks",
    "refuse_moved_words",
    "refuse_unlabelled",
    "skip_bad_samples",
    "without_unseen_images",
]

logger = logging.getLogger(__name__)

_EXAMPLES = 5
# So many label files show whether a dataset has masks of 0 and 255 only, no label at all, or labels
# that were made with another class list.
_FIRST_FILES = 32


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
                "tagclip validate"
            )


def paired_samples(images: Mapping[str, str], labels: Mapping[str, str]) -> list[dict[str, str]]:
    """One dict per name that both have, sorted, as `UsableSamples` holds them."""
    return [
        {"file_name": images[key], "sem_seg_file_name": labels[key], "image_id": key}
        for key in sorted(images.keys() & labels.keys())
    ]


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
    pairs = paired_samples(images, labels)

    def damage(sample: dict[str, str]) -> str:
        path = sample["sem_seg_file_name"]
        try:
            image = sample["file_name"]
            size = read_image(image, max_pixels=max_pixels).shape[:2]
            check_label(read_label(path, vocabulary), path, vocabulary, size, image)
        except DatasetError as error:
            return str(error)
        return ""

    found = list(map_files(damage, pairs, f"{dataset}: read"))
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


def refuse_masks(samples: Sequence[Mapping[str, Any]], vocabulary: Vocabulary) -> None:
    """Refuse masks of 0 and 255 whose 255 is no class of a list of one or two.

    Nothing could be learnt from them. The first label files are read until one holds other values,
    in most cases one; longer lists are left to tagclip validate.

    Args:
        samples: detectron2's dicts with ``sem_seg_file_name``.
        vocabulary: full class list of the label files.

    Raises:
        DatasetError: the first 32 label files are such, or one is damaged.
    """
    values: set[int] = set()
    if len(vocabulary) > 2:
        return
    first = [s["sem_seg_file_name"] for s in samples if "sem_seg_file_name" in s][:_FIRST_FILES]
    for path in first:
        values |= set(np.unique(read_label(path, vocabulary)).tolist())
        remedy = mask_remedy(values, vocabulary)
        if len(values) > 1 and not remedy:
            return
    if len(values) > 1:
        raise DatasetError(
            f"{first[0]}: this and {len(first) - 1} other label files hold {min(values)} and "
            f"{max(values)} alone; {remedy}"
        )


def refuse_moved_words(samples: Sequence[Mapping[str, Any]], vocabulary: Vocabulary) -> None:
    """Refuse label files that say themselves that their values are other classes of the list.

    The notes of the first are read, of labels that we made; others say nothing. Names that are
    not in the list may be other words for the same, which is logged.

    Args:
        samples: detectron2's dicts with ``sem_seg_file_name``.
        vocabulary: full class list of the label files.

    Raises:
        DatasetError: one of the first 32 label files is such.
    """
    if vocabulary.labels == "colors":
        return
    first = [s["sem_seg_file_name"] for s in samples if "sem_seg_file_name" in s][:_FIRST_FILES]
    pairs = ((path, OtherWords.of_file(path, vocabulary.value_names)) for path in first)
    found = [(path, other) for path, other in pairs if other]
    # Those that are surely wrong first.
    for path, other in sorted(found, key=lambda pair: not pair[1].has_moved)[:1]:
        text = f"{path}: found a label file that was made with other words or ids, {other}"
        if other.has_moved:
            raise DatasetError(
                f"{text}, expected those of {vocabulary.name}; register the labels with the class "
                "list that they were made with, or make them again with this one"
            )
        logger.warning("%s; they are taken as the same classes", text)


def refuse_unlabelled(
    samples: Sequence[dict[str, Any]], shows_seen: Callable[[dict[str, Any]], bool]
) -> None:
    """Refuse a training without a single pixel to learn from.

    Label files are read until one has such a pixel, in most cases one.

    Args:
        samples: detectron2's dicts with ``sem_seg_file_name``.
        shows_seen: `ZeroShotDatasetMapper.shows_seen`.

    Raises:
        DatasetError: there is none, or a label file is missing or damaged, or holds unknown values.
    """
    many = len(samples)
    first, others = range(min(_FIRST_FILES, many)), range(_FIRST_FILES, many)
    if any(shows_seen(samples[index]) for index in first):
        return
    if any(map_files(shows_seen, [samples[index] for index in others], "Looking for labels")):
        return
    raise DatasetError(
        f"{samples[0]['sem_seg_file_name']}: found no pixel with a class to learn in this and "
        f"{many - 1} other label files of DATASETS.TRAIN, expected some of seen classes; "
        "check the values and ignore_label in the vocabulary json, the split, and the files "
        "themselves with tagclip validate"
    )


def without_unseen_images(
    samples: Sequence[dict[str, Any]], shows_unseen: Callable[[dict[str, Any]], bool]
) -> list[dict[str, Any]]:
    """Keep the images without a single pixel of an unseen class, in their order.

    Reads every label file once, to choose images; training never sees these labels. Several
    processes share the files among them, so all of them must call this.

    Args:
        samples: detectron2's dicts with ``sem_seg_file_name``.
        shows_unseen: `ZeroShotDatasetMapper.shows_unseen`.

    Raises:
        ConfigError: no image is left.
        DatasetError: a label file is missing or damaged, or holds unknown values.
    """
    world_size = comm.get_world_size()
    own = samples[comm.get_rank() :: world_size]
    shares = comm.all_gather(list(map_files(shows_unseen, own, "Looking for unseen classes")))
    kept = [
        sample
        for index, sample in enumerate(samples)
        if not shares[index % world_size][index // world_size]
    ]
    if not kept:
        raise ConfigError(
            f"DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES: each of the {len(samples)} training images "
            "shows an unseen class, expected some without; set it to False or take another split"
        )
    logger.info(
        "%d of %d training images show no unseen class and are kept", len(kept), len(samples)
    )
    return kept
