"""Copies of the training datasets with other labels or another class list."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from tagclip.data.datasets.walk import map_files
from tagclip.data.label_io import check_label, read_label
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.class_names import name_key
from tagclip.utils.files import write_atomic
from tagclip.utils.text import json_text

__all__ = [
    "changed_datasets",
    "rename_unseen",
    "scramble_files",
    "scramble_unseen",
    "write_vocabulary",
]


def scramble_unseen(
    label: np.ndarray, vocabulary: Vocabulary, generator: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Give every pixel of an unseen class the id of another unseen class or the ignore label.

    Args:
        label: (H, W) integers, values of the vocabulary: all ids of its classes, ignored ones.
        vocabulary: full class list with its partition.
        generator: draws the new values.

    Returns:
        (H, W) uint8, or uint16 if a value needs it, and the number of changed pixels.
    """
    pairs = zip(vocabulary.classes, vocabulary.seen_mask, strict=True)
    unseen = [entry for entry, seen in pairs if not seen]
    values = np.array([*(entry.id for entry in unseen), vocabulary.ignore_label])
    highest = max(int(label.max()), int(values.max()), *(max(entry.ids) for entry in unseen))
    place = np.full(highest + 1, -1)
    for index, entry in enumerate(unseen):
        place[list(entry.ids)] = index
    places = place[label]
    hidden = places >= 0
    count = int(hidden.sum())
    shift = generator.integers(1, len(values), count)
    result = label.astype(np.uint8 if len(place) <= 256 else np.uint16)
    result[hidden] = values[(places[hidden] + shift) % len(values)]
    return result, count


def scramble_files(
    paths: Sequence[str], vocabulary: Vocabulary, seed: int, folder: str | Path
) -> tuple[dict[str, str], int]:
    """Write scrambled copies of label files.

    Args:
        paths: different label files.
        vocabulary: their full class list with its partition.
        seed: decides the new labels, together with the path.
        folder: where the copies go.

    Returns:
        Path -> path of its copy, and the number of changed pixels.

    Raises:
        DatasetError: a label file is missing or damaged, or holds unknown values.
        OutputError: a copy cannot be written.
    """
    copies = {path: str(Path(folder) / f"{number:07d}.png") for number, path in enumerate(paths)}

    def scramble(path: str) -> int:
        label = read_label(path, vocabulary)
        check_label(label, path, vocabulary, label.shape)
        generator = np.random.default_rng([seed, crc32(os.fsencode(path))])
        scrambled, count = scramble_unseen(label, vocabulary, generator)
        content = io.BytesIO()
        Image.fromarray(scrambled).save(content, "PNG")
        write_atomic(copies[path], content.getbuffer())
        return count

    return copies, sum(map_files(scramble, paths, "Scrambling"))


def rename_unseen(vocabulary: Vocabulary) -> Vocabulary:
    """Give the unseen classes other names and prompts."""
    taken = {key for entry in vocabulary.classes for key in entry.keys}
    classes = []
    for entry, seen in zip(vocabulary.classes, vocabulary.seen_mask, strict=True):
        if not seen:
            name = f"replaced {entry.id}"
            while name_key(name) in taken:
                name += " again"
            entry = replace(entry, name=name, prompts=())
        classes.append(entry)
    return replace(vocabulary, classes=tuple(classes))


def write_vocabulary(vocabulary: Vocabulary, path: str | Path) -> str:
    """Write a vocabulary json with one split, which is its default.

    Args:
        vocabulary: full class list with its partition, which has a name.
        path: the json file.

    Returns:
        The path.
    """
    pairs = zip(vocabulary.names, vocabulary.seen_mask, strict=True)
    tree = {
        "format": 1,
        "name": vocabulary.name,
        "ignore_label": vocabulary.ignored,
        "ignore_color": vocabulary.ignore_colors,
        "classes": [
            {"ids": entry.ids, "name": entry.name, "prompts": entry.prompts}
            | ({} if entry.color is None else {"color": entry.color})
            for entry in vocabulary.classes
        ],
        "default_split": vocabulary.split,
        "splits": {vocabulary.split: {"seen": [name for name, seen in pairs if seen]}},
    }
    if vocabulary.labels:
        tree["labels"] = vocabulary.labels
    return str(write_atomic(path, json_text(tree) + "\n"))


@contextmanager
def changed_datasets(
    cfg: CfgNode, *, labels: Mapping[str, str] | None = None, vocabulary: str = ""
) -> Iterator[CfgNode]:
    """Register copies of the training datasets; yields a config that trains on them.

    Args:
        cfg: names the datasets; is left as it is.
        labels: label file -> the file to take instead.
        vocabulary: vocabulary json to take instead of the datasets' own.
    """
    names = {f"{name}:changed": name for name in cfg.DATASETS.TRAIN}
    for name, original in names.items():
        DatasetCatalog.register(name, partial(_samples, original, labels or {}))
        metadata = MetadataCatalog.get(original)
        MetadataCatalog.get(name).set(
            evaluator_type=metadata.evaluator_type, vocabulary=vocabulary or metadata.vocabulary
        )
    changed = cfg.clone()
    changed.defrost()
    changed.DATASETS.TRAIN = tuple(names)
    try:
        yield changed
    finally:
        for name in names:
            DatasetCatalog.pop(name)
            MetadataCatalog.pop(name)


def _samples(dataset: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    samples = [dict(sample) for sample in DatasetCatalog.get(dataset)]
    for sample in samples:
        path = sample.get("sem_seg_file_name")
        if path in labels:
            sample["sem_seg_file_name"] = labels[path]
    return samples
