"""The predictions of an evaluation, written and read.

``predictions/`` holds either one PNG of class indices per image in ``labels/`` and, with a trusty
token, one of the trusty map in ``trusty/``, or ``sem_seg_predictions.json``, a COCO json (see
`tagclip.evaluation.coco_json`; for ``index.json`` `tagclip.evaluation.saved_folder`).
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from tagclip.config.checks import choices
from tagclip.data.label_io import read_label
from tagclip.errors import ConfigError
from tagclip.evaluation.coco_json import (
    annotations_of,
    categories_of,
    format_coco,
    number_images,
)
from tagclip.evaluation.saved_folder import FolderKind, FolderWriter, ImageName, SavedFolder
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import write_atomic
from tagclip.utils.text import error_text, json_text
from tagclip.utils.untrusted import load_json

__all__ = ["FORMATS", "PredictionWriter", "SavedPredictions"]

# Values of TEST.SAVE_PREDICTIONS.
FORMATS = choices("TEST.SAVE_PREDICTIONS")
_KIND = FolderKind(
    "predictions",
    "TEST.SAVE_PREDICTIONS png",
    "TEST.SAVE_PREDICTIONS ''",
    "labels/{}.png",
    FORMATS[1:],
)
# While an evaluation writes them, the segments of each image are in a file of their own.
_SEGMENTS, _PARTS = "sem_seg_predictions.json", ".parts"


class PredictionWriter(FolderWriter):
    """Writes the predictions of one dataset; nothing stays in memory, nothing is gathered.

    A file of an image is complete or absent; the main process joins those of the json in the end.
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
        self._ids = number_images([name.file for name in self._names.values()])
        self._form, self._vocabulary = form, vocabulary
        largest = np.uint8 if len(vocabulary) <= 255 else np.uint16
        self._no_class = int(np.iinfo(largest).max)

    def write(self, image: str, labels: np.ndarray, output: Mapping[str, Any]) -> None:
        """Write one image.

        Args:
            image: its file.
            labels: (H, W) integers, -1 for no class. In a PNG that is 255, or 65535 with more
                than 255 classes; in the json such pixels belong to no annotation.
            output: of the model; ``trusty`` (H, W) probabilities, if there are some, go into a
                PNG, too, but not into the json, which takes the scores.

        Raises:
            ConfigError: a file cannot be written.
        """
        with self.kind.writing(self._folder):
            if self._form == "json":
                write_atomic(self._file(image), json_text(self._rows(image, labels, output)))
                return
            write_atomic(self._file(image), self._label_png(labels))
            trusty: torch.Tensor | None = output.get("trusty")
            if trusty is not None:
                levels = (trusty.float().clamp(0, 1) * 255).round().byte().cpu().numpy()
                path = _trusty_file(self._folder, self._names[image])
                write_atomic(path, _png(Image.fromarray(levels)))

    def _rows(
        self, image: str, labels: np.ndarray, output: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The image and its annotations in the json."""
        file = self._names[image].file
        number, (height, width) = self._ids[file], labels.shape
        rows = annotations_of(labels, output, self._vocabulary)
        return (
            {"id": number, "file_name": file, "height": height, "width": width},
            [{"image_id": number, **row} for row in rows],
        )

    def _label_png(self, labels: np.ndarray) -> bytes:
        values = np.where(labels < 0, self._no_class, labels)
        if self._no_class > 255:
            return _png(Image.fromarray(values.astype(np.uint16)))
        palette = np.full((256, 3), 255, dtype=np.uint8)
        palette[: len(self._vocabulary)] = self._vocabulary.colors
        picture = Image.fromarray(values.astype(np.uint8))
        picture.putpalette(palette.tobytes())
        return _png(picture)

    def _file(self, image: str) -> Path:
        if self._form == "json":
            return self._folder / _PARTS / f"{self._names[image].stem}.json"
        return super()._file(image)

    def _index(self, content: Mapping[str, Any], files: Sequence[Path]) -> dict[str, Any]:
        # The parts are gone if the result was asked for before.
        if self._form == "json" and files:
            parts = [load_json(file.read_text(encoding="utf-8")) for file in files]
            text = format_coco(
                f"predictions of {content['vocabulary']} on {content['dataset']}",
                (image for image, _ in parts),
                (row for _, rows in parts for row in rows),
                categories_of(self._vocabulary),
            )
            write_atomic(self._folder / _SEGMENTS, text)
            shutil.rmtree(self._folder / _PARTS)
        return {
            "format": self._form,
            "no_class": self._no_class if self._form == "png" else None,
            "has_trusty": (self._folder / "trusty").is_dir(),
        }


def _trusty_file(folder: Path, name: ImageName) -> Path:
    return folder / "trusty" / f"{name.stem}.png"


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


class SavedPredictions(SavedFolder):
    """The predictions of an evaluation."""

    kind = _KIND

    @cached_property
    def _segments(self) -> dict[str, tuple[list[int], list[tuple[int, dict[str, Any]]]]]:
        """Name of an image -> (height, width), and index of the class and RLE of its segments."""
        path = self.folder / _SEGMENTS
        with self.kind.reading(path):
            content = load_json(path.read_text(encoding="utf-8"))
            if isinstance(content, list):
                # Of an earlier version: detectron2's list, with indices.
                found: dict[str, tuple[list[int], list[tuple[int, dict[str, Any]]]]] = {}
                for row in content:
                    size = row["segmentation"]["size"]
                    image = found.setdefault(str(row["file_name"]), (size, []))
                    image[1].append((row["category_id"], row["segmentation"]))
                return found
            indices = {row["id"]: k for k, row in enumerate(content["categories"])}
            images = {
                row["id"]: (str(row["file_name"]), ([row["height"], row["width"]], []))
                for row in content["images"]
            }
            for row in content["annotations"]:
                pair = indices[row["category_id"]], row["segmentation"]
                images[row["image_id"]][1][1].append(pair)
            return dict(images.values())

    def has(self, image: str) -> bool:
        """Whether an image was evaluated.

        Raises:
            ConfigError: the json is damaged.
        """
        if self.index["format"] == "json":
            return self._names[image].file in self._segments
        return super().has(image)

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
            labels = self._decode(name.file)
        else:
            labels = read_label(self._file(image)).astype(np.int32)
            labels[labels == self.index["no_class"]] = -1
            if self.index["has_trusty"]:
                trusty = read_label(_trusty_file(self.folder, name)).astype(np.float32) / 255
        classes = len(self.index["classes"])
        if labels.max() >= classes:
            raise ConfigError(
                f"{self.folder}: found class {labels.max()} on {name.file}, expected 0 to "
                f"{classes - 1}; evaluate again with {self.kind.save}"
            )
        return labels, trusty

    def _decode(self, name: str) -> np.ndarray:
        if name not in self._segments:
            raise ConfigError(f"{self.folder / _SEGMENTS}: found no {name}, expected all images")
        size, segments = self._segments[name]
        try:
            labels = np.full(size, -1, dtype=np.int32)
            for index, segment in segments:
                mask = coco_mask.decode(segment)
                # Where the counts end too early, decoding leaves what was in the memory.
                if coco_mask.encode(mask)["counts"].decode("ascii") != segment["counts"]:
                    raise ValueError("runs of another size")
                labels[mask != 0] = index
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ConfigError(
                f"{self.folder / _SEGMENTS}: found a damaged segment of {name} "
                f"({error_text(error)}), expected RLEs of one size; evaluate again with "
                f"{self.kind.save}"
            ) from error
        return labels
