"""Images that are trained on and tested on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tagclip.data.datasets.walk import map_files

__all__ = ["shared_images"]

_BLOCK = 4096


def shared_images(
    train_samples: Sequence[Mapping[str, Any]], test_samples: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Find the test images whose files hold the same bytes as a training image's.

    Only files of equal size are opened, and only those with equal ends are read as a whole, with a
    progress bar if stderr is a terminal. Copies that were encoded anew are found by
    tagclip validate, which compares pixels.

    Args:
        train_samples, test_samples: detectron2's dicts with "file_name".

    Returns:
        (first such training file, test file) for each of them, in the order of the test samples;
        files that cannot be read are left out.
    """
    train, test = (
        list(dict.fromkeys(str(sample["file_name"]) for sample in samples))
        for samples in (train_samples, test_samples)
    )
    pairs = {path: path for path in set(train) & set(test)}
    left = [path for path in test if path not in pairs]
    for key in (_size, _end, _digest):
        keys = dict(zip(train, map_files(key, train, "Comparing images"), strict=True))
        own = dict(zip(left, map_files(key, left, "Comparing images"), strict=True))
        both = (set(keys.values()) & set(own.values())) - {None}
        train = [path for path in train if keys[path] in both]
        left = [path for path in left if own[path] in both]
    first = {keys[path]: path for path in reversed(train)}
    pairs |= {path: first[own[path]] for path in left}
    order = dict.fromkeys(str(sample["file_name"]) for sample in test_samples)
    return [(pairs[path], path) for path in order if path in pairs]


def _size(path: str) -> int | None:
    return os.path.getsize(path) if os.path.isfile(path) else None


def _end(path: str) -> bytes | None:
    """The last bytes of a file: those of different images differ there."""
    try:
        with open(path, "rb") as file:
            file.seek(-min(_BLOCK, os.path.getsize(path)), os.SEEK_END)
            return file.read()
    except OSError:
        return None


def _digest(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return None
