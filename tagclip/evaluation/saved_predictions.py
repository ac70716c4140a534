"""The predictions of an evaluation, written and read.

``predictions/`` holds either one PNG of class indices per image in ``labels/`` and, with a trusty
token, one of the trusty map in ``trusty/``, or ``sem_seg_predictions.json`` with the RLEs of
detectron2's evaluator (for ``index.json`` see `tagclip.evaluation.saved_folder`).
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from PIL import Image
from pycocotools import mask as coco_mask

from tagclip.data.label_io import read_label
from tagclip.errors import ConfigError
from tagclip.evaluation.saved_folder import FolderKind, FolderWriter, ImageName, SavedFolder
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import write_atomic
from tagclip.utils.text import error_text
from tagclip.utils.untrusted import load_json

__all__ = ["FORMATS", "PredictionWriter", "SavedPredictions", "encode_rle"]

# Values of TEST.SAVE_PREDICTIONS.
FORMATS = ("", "png", "json")
_KIND = FolderKind(
    "predictions", "TEST.SAVE_PREDICTIONS png", "TEST.SAVE_PREDICTIONS ''", FORMATS[1:]
)
_SEGMENTS = "sem_seg_predictions.json"


class PredictionWriter(FolderWriter):
    """Writes the predictions of one dataset; nothing stays in memory, nothing is gathered.

    A PNG is complete or absent; the json grows by a line per image in a file of each process,
    which the main process joins in the end.
    """

    kind = _KIND

    def __init__(
        self,
        folder: str | Path,
        images: Iterable[str],
        distributed: bool = True,
        *,
        form: str,
        vocabulary: Vocabulary,
    ) -> None:
        """Write nothing yet.

        Args:
            folder: ``predictions/`` of an evaluation, which belongs to this class alone.
            images: files of the whole dataset.
            distributed: whether all processes write into the folder.
            form: "png" or "json".
            vocabulary: K classes of the predictions.
        """
        super().__init__(folder, images, distributed)
        self._form, self._vocabulary = form, vocabulary
        self._ranks = comm.get_world_size() if distributed else 1
        self._rank = comm.get_rank() if distributed else 0
        largest = np.uint8 if len(vocabulary) <= 255 else np.uint16
        self._no_class = int(np.iinfo(largest).max)

    def start(self) -> None:
        """See `FolderWriter.start`."""
        super().start()
        if self._form == "json":
            with self.kind.writing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._part(self._rank).write_bytes(b"")

    def write(self, image: str, labels: np.ndarray, output: Mapping[str, Any]) -> None:
        """Write one image.

        Args:
            image: its file.
            labels: (H, W) integers, -1 for no class. In a PNG that is 255, or 65535 with more
                than 255 classes; in the json such pixels belong to no segment.
            output: of the model; ``trusty`` (H, W) probabilities, if there are some, go into a
                PNG, too, but not into the json.

        Raises:
            ConfigError: a file cannot be written.
        """
        with self.kind.writing(self._folder):
            if self._form == "json":
                segments = [json.dumps(row) for row in encode_rle(labels, self._names[image].file)]
                with self._part(self._rank).open("a", encoding="utf-8") as part:
                    part.write("".join(f"{row}\n" for row in segments))
                return
            path = f"{self._names[image].stem}.png"
            write_atomic(self._folder / "labels" / path, self._label_png(labels))
            trusty: torch.Tensor | None = output.get("trusty")
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

    def _index(self, content: Mapping[str, Any]) -> dict[str, Any]:
        # The parts are gone if the result was asked for before.
        if self._form == "json" and not (self._folder / _SEGMENTS).is_file():
            self._join_parts()
        return {
            "format": self._form,
            "no_class": self._no_class if self._form == "png" else None,
            "has_trusty": (self._folder / "trusty").is_dir(),
        }

    def _join_parts(self) -> None:
        parts = [self._part(rank) for rank in range(self._ranks)]
        for rank, part in enumerate(parts):
            if not part.is_file():
                raise ConfigError(
                    f"{part}: found no predictions of process {rank}, expected an OUTPUT_DIR that "
                    "all machines share; set one, or TEST.SAVE_PREDICTIONS png"
                )
        temporary = self._folder / f".{_SEGMENTS}.tmp"
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
        os.replace(temporary, self._folder / _SEGMENTS)
        for part in parts:
            part.unlink()

    def _part(self, rank: int) -> Path:
        return self._folder / f".{_SEGMENTS}.{rank}"


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


class SavedPredictions(SavedFolder):
    """The predictions of an evaluation."""

    kind = _KIND

    @cached_property
    def _segments(self) -> dict[str, list[dict[str, Any]]]:
        """Name of an image -> its segments in the json."""
        path, segments = self.folder / _SEGMENTS, {}
        with self.kind.reading(path):
            for entry in load_json(path.read_text(encoding="utf-8")):
                segments.setdefault(str(entry["file_name"]), []).append(entry)
        return segments

    def has(self, image: str) -> bool:
        """Whether an image was evaluated.

        Raises:
            ConfigError: the json is damaged.
        """
        name = self._names[image]
        if self.index["format"] == "json":
            return name.file in self._segments
        return self._label_path(name).is_file()

    def read(self, image: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Read one image.

        Returns:
            (H, W) int32 indices, -1 for no class, and (H, W) float32 trusty map in steps of
            1/255, or None if it was not saved.

        Raises:
            DatasetError: a PNG is missing or damaged.
            ConfigError: the json or an RLE is, or a value is no class.
        """
        name, trusty = self._names[image], None
        if self.index["format"] == "json":
            labels = self._decode(self._segments.get(name.file, []), name.file)
        else:
            labels = read_label(self._label_path(name)).astype(np.int32)
            labels[labels == self.index["no_class"]] = -1
            if self.index["has_trusty"]:
                trusty = read_label(self.folder / "trusty" / f"{name.stem}.png")
                trusty = trusty.astype(np.float32) / 255
        classes = len(self.index["classes"])
        if labels.max() >= classes:
            raise ConfigError(
                f"{self.folder}: found class {labels.max()} on {name.file}, expected 0 to "
                f"{classes - 1}; evaluate again with {self.kind.save}"
            )
        return labels, trusty

    def _label_path(self, name: ImageName) -> Path:
        return self.folder / "labels" / f"{name.stem}.png"

    def _decode(self, segments: list[dict[str, Any]], name: str) -> np.ndarray:
        try:
            labels = np.full(segments[0]["segmentation"]["size"], -1, dtype=np.int32)
            for entry in segments:
                labels[coco_mask.decode(entry["segmentation"]) != 0] = entry["category_id"]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ConfigError(
                f"{self.folder / _SEGMENTS}: found a damaged segment of {name} "
                f"({error_text(error)}), expected RLEs of one size; evaluate again with "
                f"{self.kind.save}"
            ) from error
        return labels
