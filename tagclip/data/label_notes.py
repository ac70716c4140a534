"""What label files of TagCLIP say of themselves: which run made them, and what their values mean.

Others, and those whose notes another tool has dropped, say nothing and are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.class_names import name_key
from tagclip.utils.png_notes import read_notes
from tagclip.utils.text import listed

__all__ = ["OtherWords", "common_words", "refuse_other_words", "words_in"]


def words_in(labels: np.ndarray, vocabulary: Vocabulary) -> dict[int, str]:
    """Name of each class that occurs in a label map by its value in the file, for its note.

    Args:
        labels: (H, W) signed integers, indices into the vocabulary, -1 for no class.
        vocabulary: K classes.
    """
    pixels = np.bincount(labels.reshape(-1) + 1, minlength=len(vocabulary) + 1)[1:]
    return {e.id: e.name for e, n in zip(vocabulary.classes, pixels.tolist(), strict=True) if n}


class OtherWords:
    """What label files say of their values and a class list does not; spelling does not count.

    Attributes:
        names: value -> name in the files, of the values that the class list names otherwise.
        has_moved: whether one of these names is that of another value in the class list, so that
            the others are not other words for the same.
    """

    def __init__(self, words: Mapping[int, str], here: Mapping[int, str]) -> None:
        """Compare the names by value of files with those of a class list."""
        keys = {value: name_key(name) for value, name in here.items()}
        self.names = {v: name for v, name in words.items() if keys.get(v) != name_key(name)}
        self.has_moved = any(name_key(name) in keys.values() for name in self.names.values())
        self._here = here

    @classmethod
    def of_file(cls, path: str | Path, here: Mapping[int, str]) -> OtherWords:
        """Those of a label file, none if it says nothing."""
        return cls(read_notes(path)[1] or {}, here)

    def __bool__(self) -> bool:
        return bool(self.names)

    def __str__(self) -> str:
        """What they are in the files and here, three at most."""
        rows = [f"{v} = {name!r} ({self._named(v)} here)" for v, name in self.names.items()]
        return listed(rows, 3)

    def _named(self, value: int) -> str:
        return repr(self._here[value]) if value in self._here else "no class"


def common_words(files: Iterable[Path]) -> dict[int, str]:
    """What the values of label files that are read together mean, as far as they say so.

    Earlier versions did not note the classes, but the run; those of one run are the same.

    Args:
        files: of labels.

    Returns:
        Name by value.

    Raises:
        DatasetError: names two of them whose words differ: read by any class list, some are wrong.
    """
    words: dict[int, tuple[str, Path]] = {}
    by_run: dict[str, Path] = {}
    known_runs: dict[str, Path] = {}
    for file in tqdm(list(files), "Notes of labels", unit="file", disable=None, delay=1):
        note, own = read_notes(file)
        # The first word of a note is of the run, the others are of the image.
        run = note.split(" ")[0]
        if own is not None:
            known_runs.setdefault(run, file)
        elif run:
            by_run.setdefault(run, file)
        for value, name in (own or {}).items():
            first, other = words.setdefault(value, (name, file))
            if name_key(first) != name_key(name):
                raise _mixed(other, file, f"{value} is {first!r} and {name!r}")
    unknown = [file for run, file in by_run.items() if run not in known_runs]
    if unknown and len(found := [*unknown, *known_runs.values()]) > 1:
        raise _mixed(*found[:2], "an earlier version did not note the words of one")
    return {value: name for value, (name, _) in words.items()}


def _mixed(one: Path, two: Path, reason: str) -> DatasetError:
    return DatasetError(
        f"{one}, {two}: found label files of runs of segment whose words differ, or may differ "
        f"({reason}), expected those of one class list; run segment again with --overwrite, or put "
        "them into folders of their own"
    )


def refuse_other_words(files: Iterable[Path], names: Mapping[int, str]) -> None:
    """Refuse label files whose values mean something else than a class list says.

    Args:
        files: that are read together.
        names: by value, as they are to be read.

    Raises:
        DatasetError: names two files of different words, or one of other words than these.
    """
    files = list(files)
    if not OtherWords(common_words(files), names):
        return
    for file in files:
        if other := OtherWords.of_file(file, names):
            raise DatasetError(
                f"{file}: found a label file that was made with other words or ids, {other}, "
                f"expected {listed(list(names.values()), 5)}; give the words, or the class list, "
                "that it was made with"
            )
