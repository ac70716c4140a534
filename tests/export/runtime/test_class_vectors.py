"""Class vectors as a file: kept exactly, and refused in one line where something is wrong."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.clip_files import fails

from tagclip.errors import VocabularyError
from tagclip.export.runtime.class_vectors import ClassVectors, checked_names, seen_flags

CLIP = "0123456789abcdef" * 4


def classes(**changes: Any) -> ClassVectors:
    """Three classes with unit vectors of 8 numbers."""
    vectors = np.eye(3, 8, dtype=np.float32)
    fields = {"vectors": vectors, "seen": np.array([True, False, True]), "clip": CLIP}
    return ClassVectors(**({"names": ("a red bus", "кот", "猫")} | fields | changes))


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    path = tmp_path / "words.npz"
    path.write_bytes(classes().content())
    found = ClassVectors.read(path, CLIP, 8)
    for field in dataclasses.fields(ClassVectors):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(classes(), field.name))
    assert classes().content() == classes().content()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"names": ()}, ["found no class"]),
        ({"names": ("a", "b")}, ["float32 (3, 8) for 2 names", "float32 (2, D)"]),
        ({"vectors": np.eye(3, 8)}, ["found float64 (3, 8)", "float32"]),
        ({"vectors": np.eye(3, 8, dtype=np.float16)}, ["found float16"]),
        ({"vectors": np.ones(3, np.float32)}, ["float32 (3,)"]),
        ({"vectors": 2 * np.eye(3, 8, dtype=np.float32)}, ["length 2 of 'a red bus'"]),
        ({"vectors": np.zeros((3, 8), np.float32)}, ["length 0 of"]),
        ({"vectors": np.full((3, 8), np.nan, np.float32)}, ["length nan of"]),
        ({"seen": np.array([True])}, ["bool (1,)", "bool (3,)"]),
        ({"seen": np.array([True] * 4)}, ["bool (4,)"]),
        ({"seen": np.ones(3, np.uint8)}, ["uint8 (3,)"]),
    ],
    ids=lambda value: str(value[0])[:30] if isinstance(value, list) else None,
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    fails(VocabularyError, lambda: classes(**changes), *parts)
    # In a file, too.
    right, path = classes(), tmp_path / "words.npz"
    arrays = {field.name: getattr(right, field.name) for field in dataclasses.fields(right)}
    arrays |= changes
    arrays["names"] = np.array(arrays["names"], np.str_)
    np.savez(path, **arrays)
    fails(VocabularyError, lambda: ClassVectors.read(path, CLIP, 8), path, *parts)


def test_files_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "words.npz"

    def refused(content: bytes, *parts: str, clip: str = CLIP, dim: int = 8) -> None:
        path.write_bytes(content)
        fails(VocabularyError, lambda: ClassVectors.read(path, clip, dim), path, *parts)

    content = classes().content()
    refused(content, "another CLIP, '0123456789ab'", "ffffff", "encode the words", clip="f" * 64)
    refused(content, "8 numbers each, expected 16", dim=16)
    refused(content[:-40], "class vectors that tagclip run-onnx --save-vectors writes")
    refused(b"", "BadZipFile")
    file = io.BytesIO()
    np.savez(file, vectors=np.eye(3, dtype=np.float32))
    refused(file.getvalue(), "KeyError")
    file = io.BytesIO()
    np.savez(file, names=np.array([print], object), vectors=0, seen=0, clip=CLIP)
    refused(file.getvalue(), "allow_pickle")
    file = io.BytesIO()
    np.savez_compressed(file, vectors=np.zeros(1 << 20), names=0, seen=0, clip=0)
    refused(file.getvalue(), "compressed arrays")


def test_names_as_the_library_takes_them() -> None:
    assert checked_names(["a  red\tbus", " cat "]) == ("a red bus", "cat")
    for names, part in (
        ([], "found none"),
        ([""], "is empty"),
        (["a\x07b"], "control character"),
        (["cat", "CAT"], "more than once"),
    ):
        fails(VocabularyError, lambda names=names: checked_names(names), part)


def test_which_names_are_seen() -> None:
    rules = {"unknown_classes": "match", "seen_names": ["cat", "red bus"]}
    assert seen_flags(["dog", "Red  BUS", "cat"], rules).tolist() == [False, True, True]
    for policy in ("seen", "unseen"):
        flags = seen_flags(["dog", "cat"], rules | {"unknown_classes": policy})
        assert flags.tolist() == [policy == "seen"] * 2 and flags.dtype == bool
