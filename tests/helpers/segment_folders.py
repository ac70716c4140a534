"""Folders as `tagclip bulk` writes them, from label maps that are there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagclip.data.class_tables import ClassTable, vocabulary_text
from tagclip.evaluation.segment_rows import FORMATS, RowWriter, prediction_row
from tagclip.structures.vocabulary import Vocabulary

__all__ = ["label_outputs", "label_rows", "write_segment_folder"]


def label_outputs(labels: np.ndarray, trusty: np.ndarray | None = None) -> dict[str, torch.Tensor]:
    """What a model gives for an image with these (H, W) labels."""
    found = {
        "sem_seg_labels": torch.from_numpy(labels).to(torch.int16),
        "sem_seg_scores": torch.full(labels.shape, 0.75),
    }
    return found | ({} if trusty is None else {"trusty": torch.from_numpy(trusty)})


def write_segment_folder(
    folder: Path,
    shards: Sequence[Sequence[Mapping[str, Any]]],
    vocabulary: Vocabulary,
    file_format: str = "parquet",
    labels: bool = False,
) -> Path:
    """Write rows of several shards."""
    names = [f"shard-{number:06}" for number in range(len(shards))]
    folder.mkdir(parents=True)
    manifest = {
        "version": 1, "tagclip": "1", "fingerprints": {}, "run": "1" * 64, "inputs": [],
        "format": file_format, "labels": labels, "shard_size": 1000, "list": "",
        "shards": [{"name": name, "fingerprint": f"of {name}"} for name in names],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "vocabulary.json").write_text(vocabulary_text(ClassTable.of(vocabulary)))
    for name, rows in zip(names, shards, strict=True):
        path = folder / "segments" / f"{name}{FORMATS[file_format]}"
        metadata = {"tagclip.run": "1" * 64, "tagclip.shard": f"of {name}"}
        with RowWriter(path, file_format, labels, metadata) as writer:
            for row in rows:
                writer.write(row)
    return folder


def label_rows(maps: Mapping[str, np.ndarray], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Rows of images by ``image_id`` -> (H, W) indices."""
    return [
        prediction_row(image_id, label_outputs(labels), vocabulary, labels=False)
        for image_id, labels in maps.items()
    ]
