"""A folder of tools/export_model.py: what model.json says about running it."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tagclip.errors import ConfigError, TagCLIPError
from tagclip.export.runtime.class_vectors import (
    ClassVectors,
    checked_names,
    encode_names,
    seen_flags,
)
from tagclip.export.runtime.images import resize_image, resize_plane
from tagclip.export.runtime.tokenizer import Tokenizer
from tagclip.utils.text import error_text, shortened

__all__ = ["ExportedModel", "expecting"]

_KEYS = {"text_model", "merges", "vectors", "dim", "context_length", "templates", "clip",
         "unknown_classes", "seen_names"}  # fmt: skip


@contextmanager
def expecting(where: object, what: str) -> Iterator[None]:
    """Turn any error of the block into one line.

    Raises:
        ConfigError: ``where``: found the error, expected ``what``.
    """
    try:
        yield
    except TagCLIPError:
        raise
    except Exception as error:
        found = shortened(error_text(error), 300)
        raise ConfigError(f"{where}: found {found}, expected {what}") from error


class ExportedModel:
    """Labels images with words that are baked in, or with any.

    Attributes:
        recipe: content of model.json.
        takes_words: whether class vectors are an input.
    """

    def __init__(self, folder: Path) -> None:
        """Load the model; the text tower follows when words are to be encoded.

        Args:
            folder: with model.json and the files that it names.

        Raises:
            ConfigError: a file is missing, damaged or not the one that model.json describes.
        """
        self._folder, path = folder, folder / "model.json"
        with expecting(path, "what tools/export_model.py writes; check it or export again"):
            self.recipe: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self._names = tuple(self.recipe["class_names"])
            self._words = self.recipe.get("words")
            self.takes_words = self._words is not None
            if self.takes_words and (missing := _KEYS - self._words.keys()):
                raise ValueError(f"words without {', '.join(sorted(missing))}")
        self._session = self._load("model.onnx")

    def encode(self, names: Sequence[str]) -> ClassVectors:
        """Encode names with the text tower beside the model; by name they are seen or unseen.

        Raises:
            ConfigError: words are baked in, or a file is missing or damaged.
            VocabularyError: see `checked_names` and `encode_names`.
        """
        words, names = self._checked_words(), checked_names(names)
        with expecting(self._folder / words["merges"], "the merges of the tokenizer; export again"):
            tokenize = Tokenizer(self._content(words["merges"]))
        tower = self._load(words["text_model"])
        vectors = encode_names(
            names, words, tokenize, lambda tokens: tower.run(None, {"tokens": tokens})[0]
        )
        return ClassVectors(names, vectors, seen_flags(names, words), words["clip"])

    def read(self, path: Path | None = None) -> ClassVectors:
        """Read class vectors of a file; None: of the classes that were exported.

        Raises:
            ConfigError: words are baked in.
            VocabularyError: see `ClassVectors.read`.
        """
        words = self._checked_words()
        path = path or self._folder / words["vectors"]
        return ClassVectors.read(path, words["clip"], words["dim"])

    def label(self, image: np.ndarray, classes: ClassVectors | None = None) -> np.ndarray:
        """Label an image.

        Args:
            image: (H, W, 3) uint8 RGB.
            classes: K classes; None where words are baked in.

        Returns:
            (H, W) int64, indices of classes, -1 where the best score is below the threshold.
        """
        scores, size = self._scores(image, classes), image.shape[:2]
        best = np.full(size, self.recipe["background_threshold"] or -np.inf, np.float32)
        labels = np.full(size, -1)
        for index, plane in enumerate(scores):
            plane = resize_plane(plane, size)
            # Of equal scores the first wins; the threshold itself is enough.
            better = (plane > best) | ((plane == best) & (labels == -1))
            best[better], labels[better] = plane[better], index
        return labels

    def _scores(self, image: np.ndarray, classes: ClassVectors | None) -> np.ndarray:
        """(K, h, w) float32, the mean of all windows over the resized image."""
        recipe, rule, size = self.recipe, self.recipe["resize"], image.shape[:2]
        scale = min(rule["short_side"] / min(size), (rule["long_side"] or np.inf) / max(size)) or 1
        sides = [max(1, int(side * scale + 0.5)) for side in size]
        image = resize_image(image, sides, rule["library"])
        image = image[:, :, :: 1 if recipe["channel_order"] == "RGB" else -1]
        window = [min(pair) for pair in zip(sides, recipe["windows"]["size"] or sides, strict=True)]
        axes = zip(sides, window, recipe["windows"]["stride"] or window, strict=True)
        origins = [[min(x, s - w) for x in range(0, s - w + step, step)] for s, w, step in axes]
        number = len(self._names if classes is None else classes.names)
        words = {} if classes is None else {"class_vectors": classes.vectors, "seen": classes.seen}
        scores, count = np.zeros((number, *sides), np.float32), np.zeros(sides, np.float32)
        for top, left in itertools.product(*origins):
            area = slice(top, top + window[0]), slice(left, left + window[1])
            pixels = np.ascontiguousarray(image[area].transpose(2, 0, 1)[None])
            inputs = {"image" if words else "images": pixels, **words}
            scores[:, *area] += self._session.run(["scores"], inputs)[0][0]
            count[area] += 1
        return np.divide(scores, count, out=scores)

    def _checked_words(self) -> dict[str, Any]:
        if self._words is None:
            raise ConfigError(
                f"{self._folder / 'model.json'}: found a model with its words baked in, expected "
                "one of tools/export_model.py --words input; export again with it, or name no words"
            )
        return self._words

    def _content(self, name: str) -> bytes:
        """A file of the folder, if it is the one that model.json describes."""
        content = (self._folder / name).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != self.recipe["files"][name]["sha256"]:
            raise ValueError(f"sha256 {sha256}")
        return content

    def _load(self, name: str) -> onnxruntime.InferenceSession:
        path = self._folder / name
        with expecting(path, "the file that model.json describes; export again"):
            options = onnxruntime.SessionOptions()
            # Errors are raised; they need no second telling.
            options.log_severity_level = 4
            session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
            self._content(name)
        return session
