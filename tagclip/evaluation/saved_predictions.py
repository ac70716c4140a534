"""Reading the predictions that an evaluation saved.

``predictions/`` holds either one PNG of class indices per image in ``labels/`` and, with a trusty
token, one of the trusty map in ``trusty/``, or ``sem_seg_predictions.json`` with the RLEs of
detectron2's evaluator. ``index.json``, written last, says what they are: without it they are not
complete. `tagclip.evaluation.prediction_writer` writes them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from tagclip.config.checks import choices
from tagclip.data.label_io import read_label
from tagclip.errors import ConfigError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.untrusted import load_json

__all__ = [
    "FOLDER",
    "FORMATS",
    "INDEX",
    "SEGMENTS",
    "ImageName",
    "SavedPredictions",
    "image_names",
]

# Values of TEST.SAVE_PREDICTIONS.
FORMATS = choices("TEST.SAVE_PREDICTIONS")
FOLDER, INDEX, SEGMENTS = "predictions", "index.json", "sem_seg_predictions.json"
_ADVICE = "evaluate again with TEST.SAVE_PREDICTIONS png"


@dataclass(frozen=True)
class ImageName:
    """What an image is called in results, below the folder that all images share.

    Attributes:
        file: with its suffix.
        stem: without, unless another image differs in the suffix alone.
    """

    file: str
    stem: str


def image_names(files: Iterable[str]) -> dict[str, ImageName]:
    """Find names that are unique, hold no path of a machine and do not change with its order."""
    paths = {file: Path(os.path.abspath(file)) for file in files}
    root = os.path.commonpath([path.parent for path in paths.values()]) if paths else ""
    relative = {file: path.relative_to(root) for file, path in paths.items()}
    stems = Counter(path.with_suffix("") for path in relative.values())
    names = {}
    for file, path in relative.items():
        stem = path.with_suffix("")
        unique = stem if stems[stem] == 1 else path
        names[file] = ImageName(path.as_posix(), unique.as_posix())
    return names


@dataclass(frozen=True)
class SavedPredictions:
    """The predictions of an evaluation.

    Attributes:
        folder: ``predictions/``.
        index: content of ``index.json``.
    """

    folder: Path
    index: dict[str, Any]
    _names: dict[str, ImageName]
    _segments: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls, folder: str | Path, vocabulary: Vocabulary, images: Iterable[str]
    ) -> SavedPredictions:
        """Read the index, and the json where there is one.

        Args:
            folder: ``predictions/``.
            vocabulary: the classes that the predictions should be of.
            images: files of the whole dataset.

        Raises:
            ConfigError: there are none, they are not complete, damaged or of other classes.
        """
        folder = Path(folder)
        index = _read_json(folder / INDEX, dict)
        found = str(index.get("vocabulary_fingerprint"))
        if index.get("format") not in FORMATS[1:] or found != vocabulary.fingerprint:
            raise ConfigError(
                f"{folder / INDEX}: found format {index.get('format')!r} and class list "
                f"{found[:12]}, expected png or json and {vocabulary.fingerprint[:12]} of "
                f"{vocabulary.name}; {_ADVICE}"
            )
        segments: dict[str, list[dict[str, Any]]] = {}
        if index["format"] == "json":
            for entry in _read_json(folder / SEGMENTS, list):
                segments.setdefault(str(entry.get("file_name")), []).append(entry)
        return cls(folder, index, image_names(images), segments)

    def has(self, image: str) -> bool:
        """Whether an image was evaluated."""
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
            ConfigError: an RLE is, or a value is no class.
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
                f"{classes - 1}; {_ADVICE}"
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
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ConfigError(
                f"{self.folder / SEGMENTS}: found a damaged segment of {name} ({reason}), expected "
                f"RLEs of one size; {_ADVICE}"
            ) from error
        return labels


def _read_json(path: Path, kind: type) -> Any:
    try:
        content = load_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file, no complete predictions; {_ADVICE}") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not a readable json file ({reason}); {_ADVICE}") from error
    if not isinstance(content, kind):
        raise ConfigError(f"{path}: found no {kind.__name__} in it; {_ADVICE}")
    return content
