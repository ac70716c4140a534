"""A folder of tagclip export: what model.json says about running it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tagclip.errors import ConfigError, TagCLIPError
from tagclip.export.runtime.checked_recipe import check_recipe
from tagclip.export.runtime.class_vectors import (
    ClassVectors,
    checked_names,
    encode_names,
    seen_flags,
)
from tagclip.export.runtime.images import resize_image
from tagclip.export.runtime.session import Run, open_model
from tagclip.export.runtime.tokenizer import Tokenizer
from tagclip.export.runtime.windows import label_image
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
        if isinstance(error, FileNotFoundError) and str(error.filename) == str(where):
            found = "no such file"
        raise ConfigError(f"{where}: found {found}, expected {what}") from error


class ExportedModel:
    """Labels images with words that are baked in, or with any.

    Attributes:
        recipe: content of model.json.
        takes_words: whether class vectors are an input.
    """

    def __init__(
        self, folder: Path, runtime: str = "onnxruntime", file: str = "model.onnx"
    ) -> None:
        """Load the model; the text tower follows when words are to be encoded.

        Args:
            folder: with model.json and the files that it names.
            runtime: one of `RUNTIMES`.
            file: ``model.onnx``, or ``model_int8.onnx`` where it has been written.

        Raises:
            ConfigError: a file is missing, damaged or not the one that model.json describes, or
                the runtime computes something else than it says.
            NotInstalledError: the runtime is not there.
        """
        self._folder, self._runtime, self._path = folder, runtime, folder / "model.json"
        path = self._path
        with expecting(path, "what tagclip export writes; check it or export again"):
            self.recipe: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            check_recipe(self.recipe, path)
            self._words = self.recipe.get("words")
            self.takes_words = self._words is not None
            if self.takes_words and (missing := _KEYS - self._words.keys()):
                raise ValueError(f"words without {', '.join(sorted(missing))}")
            is_there = file in self.recipe["files"]
        if not is_there:
            raise ConfigError(
                f"{path}: found no {file}, expected one of tagclip export --int8; export "
                "again with it"
            )
        self._run = self._load(file, "scores")

    def encode(self, names: Sequence[str]) -> ClassVectors:
        """Encode names with the text tower beside the model; by name they are seen or unseen.

        Raises:
            ConfigError: words are baked in, or a file is missing or damaged.
            VocabularyError: see `checked_names` and `encode_names`.
        """
        words, names = self._checked_words(), checked_names(names)
        with expecting(self._folder / words["merges"], "the merges of the tokenizer; export again"):
            tokenize = Tokenizer(self._content(words["merges"]))
        tower = self._load(words["text_model"], "vectors")
        vectors = encode_names(names, words, tokenize, lambda tokens: tower({"tokens": tokens}))
        return ClassVectors(names, vectors, seen_flags(names, words), words["clip"])

    def read(self, path: Path | None = None) -> ClassVectors:
        """Read class vectors of a file; None: of the classes that were exported.

        Raises:
            ConfigError: words are baked in, or the exported file is missing or another one.
            VocabularyError: see `ClassVectors.read`.
        """
        words, is_own = self._checked_words(), path is None
        if path is None:
            path = self._folder / words["vectors"]
            with expecting(path, "the file that model.json describes; export again"):
                self._content(path.name)
        classes = ClassVectors.read(path, words["clip"], words["dim"])
        if is_own and list(classes.names) != self.recipe["class_names"]:
            raise ConfigError(
                f"{self._path}: found other class_names than {path.name} has, expected its "
                f"{len(classes.names)}; export again"
            )
        return classes

    def label(self, image: np.ndarray, classes: ClassVectors | None = None) -> np.ndarray:
        """Label an image.

        Args:
            image: (H, W, 3) uint8 RGB.
            classes: K classes; None where words are baked in.

        Returns:
            (H, W) int32, indices of classes, -1 where the best score is below the threshold.

        Raises:
            ConfigError: the model gives the scores of more or fewer classes.
        """
        rule, size = self.recipe["resize"], image.shape[:2]
        scale = min(rule["short_side"] / min(size), (rule["long_side"] or np.inf) / max(size)) or 1
        sides = [max(1, int(side * scale + 0.5)) for side in size]
        image = resize_image(image, sides, rule["library"], rule.get("interpolation", "bilinear"))
        image = image[:, :, :: 1 if self.recipe["channel_order"] == "RGB" else -1]
        words = {} if classes is None else {"class_vectors": classes.vectors, "seen": classes.seen}
        name = "image" if words else "images"
        count = len(self.recipe["class_names"] if classes is None else classes.names)

        def run(window: np.ndarray) -> np.ndarray:
            scores = self._run({name: window, **words})
            if scores.shape[1] != count:
                raise ConfigError(
                    f"{self._path}: found {count} class_names, expected {scores.shape[1]}, as many "
                    "as the model gives scores; export again"
                )
            return scores

        return label_image(image.transpose(2, 0, 1), size, self.recipe, run)

    def _checked_words(self) -> dict[str, Any]:
        if self._words is None:
            raise ConfigError(
                f"{self._path}: found a model with its words baked in, expected "
                "one of tagclip export --words input; export again with it, or name no words"
            )
        return self._words

    def _content(self, name: str) -> bytes:
        """A file of the folder, if it is the one that model.json describes."""
        content = (self._folder / name).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != self.recipe["files"][name]["sha256"]:
            raise ValueError(f"sha256 {sha256}")
        return content

    def _load(self, name: str, output: str) -> Run:
        with expecting(self._folder / name, "the file that model.json describes; export again"):
            return open_model(self._content(name), self._runtime, output)
