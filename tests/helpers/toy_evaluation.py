"""A dataset of three images and a model's answers to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.toy_dataset import vocabulary_tree, write_json, write_sample

from tagclip import Vocabulary, ZeroShotSemSegEvaluator, register_zero_shot_sem_seg

NAMES = ["cat", "dog", "grass", "sky", "sofa"]
IDS = [7, 0, 3, 200, 11]
UNSEEN = ["dog", "sky"]
IGNORE = 250
SIZES = [(9, 7), (4, 12), (6, 6)]


class Toy:
    """Three images with random labels and predictions; `sofa` is predicted but never true."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        rng = np.random.default_rng(0)
        values = np.array([*IDS[:4], IGNORE])
        self.labels = [rng.choice(values, size).astype(np.uint8) for size in SIZES]
        self.samples = [
            write_sample(folder, f"{i}", np.zeros((*label.shape, 3), np.uint8), label)
            for i, label in enumerate(self.labels)
        ]
        tree = vocabulary_tree(NAMES, UNSEEN, ignore_label=IGNORE)
        for entry, value in zip(tree["classes"], IDS, strict=True):
            entry["id"] = value
        self.json = write_json(folder / "toy.json", tree)
        register_zero_shot_sem_seg(
            name, folder / "images", folder / "labels", self.json, image_ext="png"
        )
        self.vocabulary = Vocabulary.from_metadata(name)
        generator = torch.Generator().manual_seed(1)
        self.scores = [torch.rand(5, *size, generator=generator) for size in SIZES]
        # Few values, so that ties happen.
        self.trusty = [torch.randint(0, 9, s, generator=generator) / 8 for s in SIZES]

    def evaluator(self, **arguments: Any) -> ZeroShotSemSegEvaluator:
        options = {"vocabulary": self.vocabulary, "distributed": False} | arguments
        return ZeroShotSemSegEvaluator(self.name, **options)

    def input(self, index: int, **more: Any) -> dict[str, Any]:
        return {"file_name": self.samples[index]["file_name"], **more}

    def output(self, index: int) -> dict[str, torch.Tensor]:
        labels = self.scores[index].argmax(dim=0).to(torch.int16)
        return {"sem_seg_labels": labels, "trusty": self.trusty[index].half()}

    def run(self, evaluator: ZeroShotSemSegEvaluator, *indices: int) -> ZeroShotSemSegEvaluator:
        evaluator.process([self.input(i) for i in indices], [self.output(i) for i in indices])
        return evaluator

    def pixels(self) -> Iterator[tuple[str, str, float]]:
        """(true name, predicted name, trusty) of every labelled pixel."""
        name_of = dict(zip(IDS, NAMES, strict=True))
        for label, scores, trusty in zip(self.labels, self.scores, self.trusty, strict=True):
            for y, x in itertools.product(*map(range, label.shape)):
                if label[y, x] != IGNORE:
                    best = max(range(5), key=lambda k: scores[k, y, x])  # noqa: B023
                    yield name_of[int(label[y, x])], NAMES[best], float(trusty[y, x])


def metrics_content(vocabulary: Vocabulary, images: int) -> dict[str, Any]:
    """What of ``metrics.json`` the folders beside it need."""
    return {
        "dataset": "toy", "images": images, "vocabulary": "toy", "split": "", "run": {},
        "vocabulary_fingerprint": vocabulary.fingerprint,
        "classes": [{"name": name} for name in vocabulary.names],
    }  # fmt: skip
