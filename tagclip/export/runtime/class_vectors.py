"""Classes as an exported model takes them: a vector and a flag each, encoded from words or read."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tagclip.errors import VocabularyError
from tagclip.utils.class_names import checked_name, name_key, refuse_duplicates
from tagclip.utils.text import error_text, shortened

__all__ = ["ClassVectors", "checked_names", "encode_names", "seen_flags"]

logger = logging.getLogger(__name__)

# Of a vector's length from 1.
_TOLERANCE = 1e-3
# Prompts per run of the text tower.
_BATCH = 256


@dataclass(frozen=True)
class ClassVectors:
    """K classes and what the model is told of them.

    Attributes:
        names: K names.
        vectors: (K, D) float32, of length 1.
        seen: (K,) bool, whether training has seen the class.
        clip: fingerprint of the CLIP that made the vectors.

    Raises:
        VocabularyError: an array has another type, shape or content.
    """

    names: tuple[str, ...]
    vectors: np.ndarray
    seen: np.ndarray
    clip: str

    def __post_init__(self) -> None:
        number, vectors, seen = len(self.names), self.vectors, self.seen
        if not number:
            raise VocabularyError("class vectors: found no class, expected one or more; name them")
        if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != number:
            raise VocabularyError(
                f"class vectors: found {vectors.dtype} {vectors.shape} for {number} names, "
                f"expected float32 ({number}, D); encode the names anew"
            )
        if seen.dtype != bool or seen.shape != (number,):
            raise VocabularyError(
                f"class vectors: found {seen.dtype} {seen.shape} of seen flags for {number} names, "
                f"expected bool ({number},); encode the names anew"
            )
        lengths = np.linalg.norm(vectors, axis=1)
        wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _TOLERANCE))
        if len(wrong):
            raise VocabularyError(
                f"class vectors: found the length {lengths[wrong[0]]:.4g} of "
                f"{self.names[wrong[0]]!r}, expected 1; encode the names anew"
            )

    def content(self) -> bytes:
        """Return a file that `read` reads, an npz of ``names``, ``vectors``, ``seen``, ``clip``."""
        file = io.BytesIO()
        names = np.array(self.names, np.str_)
        np.savez(file, names=names, vectors=self.vectors, seen=self.seen, clip=np.array(self.clip))
        return file.getvalue()

    @classmethod
    def read(cls, path: Path, clip: str, dim: int) -> ClassVectors:
        """Read a file of `content`.

        Args:
            path: the npz.
            clip: fingerprint of the CLIP whose vectors are wanted.
            dim: their width D.

        Raises:
            VocabularyError: it cannot be read, or is of another CLIP.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                # Nothing is compressed: what is in it takes no more memory than the file.
                if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
                    raise ValueError("compressed arrays")
            with np.load(path, allow_pickle=False) as file:
                names, vectors, seen = file["names"], file["vectors"], file["seen"]
                found = str(file["clip"])
            if names.dtype.kind != "U" or names.ndim != 1:
                raise ValueError(f"{names.dtype} {names.shape} of names")
        # What zipfile and numpy raise on damaged files is of many kinds.
        except Exception as error:
            found = shortened(error_text(error), 200)
            if isinstance(error, FileNotFoundError):
                found = "no such file"
            raise VocabularyError(
                f"{path}: found {found}, expected class vectors that "
                "tagclip run-onnx --save-vectors writes; write them anew"
            ) from error
        if found != clip:
            raise VocabularyError(
                f"{path}: found vectors of another CLIP, {found[:12]!r}, expected those of "
                f"{clip[:12]}; encode the words with the text tower beside the model"
            )
        try:
            classes = cls(tuple(map(str, names)), vectors, seen, found)
            if vectors.shape[1] != dim:
                raise VocabularyError(
                    f"class vectors: found {vectors.shape[1]} numbers each, expected {dim}; encode "
                    "the names anew"
                )
            return classes
        except VocabularyError as error:
            raise VocabularyError(f"{path}: {error}") from error


def checked_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names with single blanks.

    Raises:
        VocabularyError: there is none, or one is empty, repeats or holds control characters.
    """
    names = tuple(checked_name(name, f"class name {index}") for index, name in enumerate(names, 1))
    refuse_duplicates(names, "class names")
    if not names:
        raise VocabularyError("class names: found none, expected one or more; name them")
    return names


def encode_names(
    names: Sequence[str],
    recipe: Mapping[str, Any],
    tokenize: Callable[[str], list[int]],
    run: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Encode names as `TextBank` does: the mean of the unit vectors of all templates, of length 1.

    Args:
        names: K class names, see `checked_names`.
        recipe: ``words`` of the json beside the model.
        tokenize: text -> ids from start to end token.
        run: (T, L) int64 ids, padded with 0 -> (T, D) float32.

    Returns:
        (K, D) float32.

    Raises:
        VocabularyError: the tokenizer refuses a name.
    """
    for name in names:
        if len(tokenize(name)) == 2:
            logger.warning("The name %r: CLIP's text tower reads nothing of it; use another", name)
    templates, limit = recipe["templates"], recipe["context_length"]
    # Names are data: no format directives inside them.
    ids = [tokenize(template.replace("{}", name)) for name in names for template in templates]
    for index, row in enumerate(ids):
        if len(row) > limit:
            logger.warning(
                "The name %r: a prompt has %d tokens, CLIP reads %d; use a shorter name",
                shortened(names[index // len(templates)], 80), len(row), limit,
            )  # fmt: skip
            ids[index] = [*row[: limit - 1], row[-1]]
    vectors = []
    for start in range(0, len(ids), _BATCH):
        chunk = ids[start : start + _BATCH]
        tokens = np.zeros((len(chunk), max(map(len, chunk))), np.int64)
        for row, values in zip(tokens, chunk, strict=True):
            row[: len(values)] = values
        vectors.append(run(tokens))
    grouped = _unit(np.concatenate(vectors)).reshape(len(names), len(templates), -1)
    return _unit(grouped.mean(axis=1))


def seen_flags(names: Sequence[str], recipe: Mapping[str, Any]) -> np.ndarray:
    """Return (K,) bool, which names are of classes that training has seen.

    Args:
        names: K class names.
        recipe: ``words`` of the json beside the model, whose ``unknown_classes`` is "match" (by
            name), "seen" or "unseen".
    """
    policy, trained = recipe["unknown_classes"], set(recipe["seen_names"])
    if policy != "match":
        return np.full(len(names), policy == "seen")
    return np.array([name_key(name) in trained for name in names])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
