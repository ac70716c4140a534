"""What a model draws when it is asked for one word, which an image may show or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagclip import TagCLIPPredictor, Vocabulary
from tagclip.data import read_indices
from tagclip.visualization.panels import draw_panels, fit
from tagclip.visualization.segments import draw_segments

__all__ = ["draw_words", "measure_words_alone"]

_PICTURE = 240
_COLUMNS = (
    "image",
    "labels",
    "all classes",
    "all, BACKGROUND auto",
    "a word alone",
    "an absent one",
)


def measure_words_alone(
    predictor: TagCLIPPredictor, samples: Sequence[dict[str, Any]], vocabulary: Vocabulary
) -> dict[str, float]:
    """Ask for every class of a dataset by itself.

    Args:
        predictor: of MODEL.TAGCLIP.TEST.BACKGROUND auto.
        samples: dicts with ``file_name`` and ``sem_seg_file_name``.
        vocabulary: the classes of the label files, with the split of the report.

    Returns:
        In percent, means over the words, all of them, seen and unseen ones: pixels of images
        without the class that are drawn, and pixels of the class that are.
    """
    images = [predictor.read_image(sample["file_name"]) for sample in samples]
    truths = np.stack(
        [
            read_indices(sample["sem_seg_file_name"], vocabulary, image.shape[:2])
            for sample, image in zip(samples, images, strict=True)
        ]
    )
    shares = []
    for index in range(len(vocabulary)):
        predictor.set_vocabulary(_alone(vocabulary, index))
        own, drawn = truths == index, _drawn(predictor, images)
        elsewhere = ~own.any(axis=(1, 2))
        # No image may have the class, or each of them.
        parts = drawn[elsewhere], drawn[own]
        shares.append([part.mean() if part.size else np.nan for part in parts])
    shares, seen = 100 * np.array(shares), vocabulary.seen_mask
    found = {}
    for words, rows in (("words", seen | ~seen), ("seen words", seen), ("unseen words", ~seen)):
        elsewhere, kept = np.nanmean(shares[rows], axis=0)
        found |= {f"{words}, drawn where absent": elsewhere, f"{words}, own pixels drawn": kept}
    return {name: float(value) for name, value in found.items()}


def draw_words(
    predictor: TagCLIPPredictor, samples: Sequence[dict[str, Any]], vocabulary: Vocabulary
) -> np.ndarray:
    """Draw a row for each image: without and with the test, and two unseen words by themselves.

    These are the unseen class with most pixels there and the next one of the list that has none.

    Args:
        predictor: of MODEL.TAGCLIP.TEST.BACKGROUND auto.
        samples: dicts with ``file_name`` and ``sem_seg_file_name``; those without an unseen class
            are left out.
        vocabulary: see `measure_words_alone`.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    rows, titles = [], []
    classes, names = len(vocabulary), vocabulary.names
    for sample in samples:
        image = predictor.read_image(sample["file_name"])
        truth = read_indices(sample["sem_seg_file_name"], vocabulary, image.shape[:2])
        counts = np.bincount(truth[truth < classes], minlength=classes)
        counts[vocabulary.seen_mask] = -1
        if counts.max() <= 0:
            continue
        there = int(counts.argmax())
        # Behind it in the list are its noun in other colours, and other nouns in its own.
        absent = next(k for k in np.roll(np.arange(classes), -there) if counts[k] == 0)
        predictor.set_vocabulary(vocabulary)
        tested = predictor(image)["sem_seg_labels"].numpy()
        fusion = predictor.encode(image, predictor.asked)
        plain = fusion.best(image.shape[:2])[0].cpu().numpy()
        drawn = [(truth, vocabulary), (plain, vocabulary), (tested, vocabulary)]
        for index in (there, absent):
            predictor.set_vocabulary(_alone(vocabulary, index))
            drawn.append((predictor(image)["sem_seg_labels"].numpy(), predictor.vocabulary))
        picture = fit(image[:, :, ::-1], _PICTURE)
        pictures = [draw_segments(picture, fit(labels, _PICTURE), v) for labels, v in drawn]
        rows.append([picture, *pictures])
        titles.append(f"{Path(sample['file_name']).name}: {names[there]}; {names[absent]}")
    return draw_panels(rows, _COLUMNS, titles)


def _alone(vocabulary: Vocabulary, index: int) -> Vocabulary:
    entry, seen = vocabulary.classes[index], bool(vocabulary.seen_mask[index])
    return replace(vocabulary, name=entry.name, classes=(entry,), seen=(seen,), split="")


def _drawn(predictor: TagCLIPPredictor, images: Sequence[np.ndarray]) -> np.ndarray:
    """(N, H, W) bool: pixels that get a word."""
    found = predictor(list(images))
    return torch.stack([each["sem_seg_labels"] >= 0 for each in found]).numpy()
