"""The predictions of an evaluation, written and read.

``predictions/`` holds either one PNG per image in ``labels/``, a label file of the dataset
(`tagclip.data.label_image`), and, with a trusty token, one of the trusty map in ``trusty/``, or
``sem_seg_predictions.json``, a COCO json (see `tagclip.evaluation.coco_json`). Of what
``index.json`` says (`tagclip.evaluation.saved_folder`)::

    {"format": "png", "values": "ids", "no_class": 255, "has_trusty": true,
     "classes": [{"id": 7, "name": "cat"}]}

``no_class``, the dataset's ignore label, is the value of pixels without a class; null in the json,
where no annotation has them. Without ``values``, as earlier versions wrote it, PNGs hold indices
of the classes, and 255 or 65535.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagclip.config.checks import choices
from tagclip.data.formats.annotation import rle_mask
from tagclip.data.label_image import label_image
from tagclip.data.label_io import read_label
from tagclip.errors import ConfigError, DatasetError
from tagclip.evaluation.coco_json import (
    annotations_of,
    categories_of,
    format_coco,
    number_images,
)
from tagclip.evaluation.saved_folder import FolderKind, FolderWriter, ImageName, SavedFolder
from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_class import MAX_LABEL
from tagclip.utils.files import write_atomic
from tagclip.utils.look_up import look_up
from tagclip.utils.text import error_text, json_text
from tagclip.utils.untrusted import load_json
from tagclip.visualization.panels import save_png

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

    def write(self, image: str, labels: np.ndarray, output: Mapping[str, Any]) -> None:
        """Write one image.

        Args:
            image: its file.
            labels: (H, W) integers, -1 for no class. In a PNG that is the ignore label; in the
                json such pixels belong to no annotation.
            output: of the model; ``trusty`` (H, W) probabilities, if there are some, go into a
                PNG, too, but not into the json, which takes the scores.

        Raises:
            ConfigError: a file cannot be written.
        """
        with self.kind.writing(self._folder):
            if self._form == "json":
                write_atomic(self._file(image), json_text(self._rows(image, labels, output)))
                return
            save_png(self._file(image), label_image(labels, self._vocabulary))
            trusty: torch.Tensor | None = output.get("trusty")
            if trusty is not None:
                levels = (trusty.float().clamp(0, 1) * 255).round().byte().cpu().numpy()
                save_png(_trusty_file(self._folder, self._names[image]), levels)

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
            "values": "ids",
            "no_class": self._vocabulary.ignore_label if self._form == "png" else None,
            "has_trusty": (self._folder / "trusty").is_dir(),
            "classes": [{"id": e.id, "name": e.name} for e in self._vocabulary.classes],
        }


def _trusty_file(folder: Path, name: ImageName) -> Path:
    return folder / "trusty" / f"{name.stem}.png"


class SavedPredictions(SavedFolder):
    """The predictions of an evaluation."""

    kind = _KIND

    @classmethod
    def _check_index(
        cls, folder: str | Path, index: Mapping[str, Any], vocabulary: Vocabulary
    ) -> None:
        """It has to say what the files hold."""
        with cls.kind.reading(Path(folder) / "index.json"):
            if index["format"] == "png" and not isinstance(index["has_trusty"], bool):
                raise TypeError(f"has_trusty {index['has_trusty']!r:.40}")

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
            values = labels = self._decode(name.file)
            is_unknown = labels >= len(self.vocabulary)
        else:
            values = read_label(self._file(image)).astype(np.int32)
            labels = look_up(self._lut, np.clip(values, -1, MAX_LABEL + 1))
            is_unknown = labels < -1
            if self.index["has_trusty"]:
                trusty = read_label(_trusty_file(self.folder, name)).astype(np.float32) / 255
        if is_unknown.any():
            raise ConfigError(
                f"{self.folder}: found value {values[is_unknown][0]} on {name.file}, which is no "
                f"class of {self.vocabulary.name}; evaluate again with {self.kind.save}"
            )
        return labels, trusty

    @cached_property
    def _lut(self) -> np.ndarray:
        """int32 index of the values 0 to 65535 of a PNG: -1 for no class, -2 for nothing."""
        with self.kind.reading(self.folder / "index.json"):
            # Earlier versions wrote indices.
            has_ids = {"ids": True, None: False}[self.index.get("values")]
            no_class = self.vocabulary.ignore_label if has_ids else int(self.index["no_class"])
        # The last stands for all outside.
        lut = np.full(MAX_LABEL + 2, -2, dtype=np.int32)
        lut[no_class] = -1
        for index, entry in enumerate(self.vocabulary.classes):
            lut[entry.id if has_ids else index] = index
        return lut

    def _decode(self, name: str) -> np.ndarray:
        if name not in self._segments:
            raise ConfigError(f"{self.folder / _SEGMENTS}: found no {name}, expected all images")
        size, segments = self._segments[name]
        try:
            labels = np.full(size, -1, dtype=np.int32)
            for index, segment in segments:
                labels[rle_mask(segment["size"], segment["counts"])()] = index
        except (DatasetError, KeyError, TypeError, ValueError, IndexError) as error:
            raise ConfigError(
                f"{self.folder / _SEGMENTS}: found a damaged segment of {name} "
                f"({error_text(error)}), expected RLEs of one size; evaluate again with "
                f"{self.kind.save}"
            ) from error
        return labels
