"""What a model draws when it is asked for one word, which an image may show or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tagclip import TagCLIPPredictor, Vocabulary
from tagclip.data import read_indices

__all__ = ["measure_words_alone"]


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
        shares.append((drawn[elsewhere].mean(), drawn[own].mean()))
    shares, seen = 100 * np.array(shares), vocabulary.seen_mask
    found = {}
    for words, rows in (("words", seen | ~seen), ("seen words", seen), ("unseen words", ~seen)):
        elsewhere, kept = shares[rows].mean(axis=0)
        found |= {f"{words}, drawn where absent": elsewhere, f"{words}, own pixels drawn": kept}
    return {name: float(value) for name, value in found.items()}


def _alone(vocabulary: Vocabulary, index: int) -> Vocabulary:
    entry, seen = vocabulary.classes[index], bool(vocabulary.seen_mask[index])
    return replace(vocabulary, name=entry.name, classes=(entry,), seen=(seen,), split="")


def _drawn(predictor: TagCLIPPredictor, images: Sequence[np.ndarray]) -> np.ndarray:
    """(N, H, W) bool: pixels that get a word."""
    found = predictor(list(images))
    return torch.stack([each["sem_seg_labels"] >= 0 for each in found]).numpy()
