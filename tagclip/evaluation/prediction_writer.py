"""Writing predictions during an evaluation (their form: `tagclip.evaluation.saved_predictions`)."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from PIL import Image
from pycocotools import mask as coco_mask

from tagclip.errors import ConfigError
from tagclip.evaluation.report import format_json
from tagclip.evaluation.run_folder import empty_folder, writable
from tagclip.evaluation.saved_predictions import INDEX, SEGMENTS, image_names
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import write_atomic

__all__ = ["PredictionWriter", "encode_rle"]


class PredictionWriter:
    """Writes the predictions of one dataset; nothing stays in memory, nothing is gathered.

    Each process writes its own images. A PNG is complete or absent; the json grows by a line per
    image in a file of each process, which the main process joins in the end.
    """

    def __init__(
        self,
        folder: str | Path,
        kind: str,
        vocabulary: Vocabulary,
        images: Iterable[str],
        distributed: bool = True,
    ) -> None:
        """Write nothing yet.

        Args:
            folder: ``predictions/`` of an evaluation, which belongs to this class alone.
            kind: "png" or "json".
            vocabulary: K classes of the predictions.
            images: files of the whole dataset.
            distributed: whether all processes write into the folder.
        """
        self._folder, self._kind, self._vocabulary = Path(folder), kind, vocabulary
        self._names = image_names(images)
        self._distributed = distributed
        self._ranks = comm.get_world_size() if distributed else 1
        self._rank = comm.get_rank() if distributed else 0
        largest = np.uint8 if len(vocabulary) <= 255 else np.uint16
        self._no_class = int(np.iinfo(largest).max)

    def start(self) -> None:
        """Remove what an earlier evaluation left; every process of the evaluation calls this.

        Raises:
            ConfigError: the folder cannot be written.
        """
        with self._writable():
            empty_folder(self._folder, self._distributed)
            if self._kind == "json":
                self._folder.mkdir(parents=True, exist_ok=True)
                self._part(self._rank).write_bytes(b"")

    def write(self, image: str, labels: np.ndarray, trusty: torch.Tensor | None = None) -> None:
        """Write one image.

        Args:
            image: its file.
            labels: (H, W) integers, -1 for no class. In a PNG that is 255, or 65535 with more
                than 255 classes; in the json such pixels belong to no segment.
            trusty: (H, W) probabilities, which the json does not have.

        Raises:
            ConfigError: a file cannot be written.
        """
        with self._writable():
            if self._kind == "json":
                segments = [json.dumps(row) for row in encode_rle(labels, self._names[image].file)]
                with self._part(self._rank).open("a", encoding="utf-8") as part:
                    part.write("".join(f"{row}\n" for row in segments))
                return
            path = f"{self._names[image].stem}.png"
            write_atomic(self._folder / "labels" / path, self._label_png(labels))
            if trusty is not None:
                levels = (trusty.float().clamp(0, 1) * 255).round().byte().cpu().numpy()
                write_atomic(self._folder / "trusty" / path, _png(Image.fromarray(levels)))

    def _label_png(self, labels: np.ndarray) -> bytes:
        values = np.where(labels < 0, self._no_class, labels)
        if self._no_class > 255:
            return _png(Image.fromarray(values.astype(np.uint16)))
        palette = np.full((256, 3), 255, dtype=np.uint8)
        palette[: len(self._vocabulary)] = self._vocabulary.colors
        picture = Image.fromarray(values.astype(np.uint8))
        picture.putpalette(palette.tobytes())
        return _png(picture)

    def finish(self, images: int) -> None:
        """Join the parts and write ``index.json``: in the main process, when all have written.

        Args:
            images: number of images of all processes.

        Raises:
            ConfigError: a file cannot be written, or the parts of other machines are not here.
        """
        with self._writable():
            # They are gone if the result was asked for before.
            if self._kind == "json" and not (self._folder / INDEX).is_file():
                self._join_parts()
            content = {
                "format": self._kind,
                "images": images,
                "no_class": self._no_class if self._kind == "png" else None,
                "has_trusty": (self._folder / "trusty").is_dir(),
                "vocabulary": self._vocabulary.name,
                "vocabulary_fingerprint": self._vocabulary.fingerprint,
                "classes": self._vocabulary.names,
            }
            write_atomic(self._folder / INDEX, format_json(content))

    def _join_parts(self) -> None:
        parts = [self._part(rank) for rank in range(self._ranks)]
        for rank, part in enumerate(parts):
            if not part.is_file():
                raise ConfigError(
                    f"{part}: found no predictions of process {rank}, expected an OUTPUT_DIR that "
                    "all machines share; set one, or TEST.SAVE_PREDICTIONS png"
                )
        temporary = self._folder / f".{SEGMENTS}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            separator = "[\n"
            for part in parts:
                with part.open(encoding="utf-8") as lines:
                    for line in lines:
                        file.write(separator + line.rstrip("\n"))
                        separator = ",\n"
            file.write("\n]\n" if separator == ",\n" else "[]\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._folder / SEGMENTS)
        for part in parts:
            part.unlink()

    def _part(self, rank: int) -> Path:
        return self._folder / f".{SEGMENTS}.{rank}"

    def _writable(self) -> AbstractContextManager[None]:
        return writable(self._folder, "predictions", "TEST.SAVE_PREDICTIONS ''")


def encode_rle(labels: np.ndarray, image: str) -> Iterator[dict[str, Any]]:
    """Yield one segment per class as detectron2's ``SemSegEvaluator`` writes it.

    Args:
        labels: (H, W) indices of classes; negative ones are in no segment.
        image: what the image is called.

    Yields:
        ``file_name``, ``category_id`` (the index) and ``segmentation`` (COCO's RLE).
    """
    # An image without any class gets an empty segment, which tells it from a missing one.
    for k in [int(k) for k in np.unique(labels) if k >= 0] or [0]:
        segment = coco_mask.encode(np.asfortranarray(labels == k, dtype=np.uint8))
        segment["counts"] = segment["counts"].decode("ascii")
        yield {"file_name": image, "category_id": k, "segmentation": segment}


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
