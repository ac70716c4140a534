"""A folder of converted label files: its class list, and the index of what they were made of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tagclip.data.class_tables import ClassTable, vocabulary_text
from tagclip.data.datasets.register import LABEL_EXTS
from tagclip.data.datasets.walk import files_below
from tagclip.data.label_meaning import joined_text
from tagclip.errors import DatasetError, VocabularyError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_json import read_vocabulary_text
from tagclip.utils.files import write_atomic
from tagclip.utils.text import counted, json_text
from tagclip.utils.untrusted import load_json

__all__ = ["FolderClasses", "LabelFolder"]

_INDEX, _VOCABULARY = "index.json", "vocabulary.json"


class FolderClasses(NamedTuple):
    """The class list of a folder in the end.

    Attributes:
        text: of vocabulary.json.
        fate: what becomes of one that is there: "new", "same", "kept", "extended" or "replaced".
    """

    text: str
    fate: str


class LabelFolder:
    """Writes what stands beside label files; those of earlier runs keep their meaning."""

    def __init__(self, path: Path, outputs: Iterable[Path], sources: Iterable[Path]) -> None:
        """Look at nothing yet.

        Args:
            path: the folder, which may be missing.
            outputs: label files of this run.
            sources: files and folders that it reads, which may lie in the folder.
        """
        self.path, self._own = path, set(outputs)
        self._sources = [source.resolve() for source in sources]

    def classes(self, table: ClassTable, overwrite: bool) -> FolderClasses:
        """The class list for the labels of this run and those that are there.

        Args:
            table: of this run.
            overwrite: whether labels and class list of an earlier run may be replaced.

        Raises:
            DatasetError: labels would stay that mean something else by what replaces their list.
            VocabularyError: the one that is there is damaged, or labels would change their meaning.
        """
        path, new = self.path / _VOCABULARY, vocabulary_text(table)
        if not os.path.lexists(path):
            return FolderClasses(new, "new")
        try:
            text = joined_text(path, table)
        except VocabularyError as error:
            others = self._others()
            if overwrite and not others:
                return FolderClasses(new, "replaced")
            if overwrite:
                raise DatasetError(
                    f"{others[0]}: found {counted(len(others), 'label file')} that this run does "
                    "not write, expected none, for by its class list they would mean something "
                    "else; choose another --output, or remove them"
                ) from error
            remedy = "" if others else ", or pass --overwrite"
            raise VocabularyError(
                f"{error}; or choose another --output, into which all can go in one run{remedy}"
            ) from error
        if text != read_vocabulary_text(path):
            return FolderClasses(text, "extended")
        return FolderClasses(text, "same" if text == new else "kept")

    def _others(self) -> list[Path]:
        """Label files there that this run neither reads nor writes, sorted."""
        return sorted(
            path
            for path in files_below(self.path)
            if path.suffix.lower().removeprefix(".") in LABEL_EXTS
            and path not in self._own
            and not any(path.resolve().is_relative_to(source) for source in self._sources)
        )

    def earlier_runs(self) -> list[dict[str, Any]]:
        """What the index there says of label files that this run does not write, run by run."""
        own, found = set(map(self._name, self._own)), []
        try:
            index = load_json((self.path / _INDEX).read_text("utf-8"))
            last = {key: index[key] for key in ("from", "source", "unknown", "files")}
            for run in (*index.get("earlier", ()), last):
                names = (name for name in run["files"] if name not in own)
                files = {n: run["files"][n] for n in names if (self.path / n).is_file()}
                found += [{**run, "files": files}] * bool(files)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            # Of a run that broke off, or not ours: the labels themselves are what counts.
            return []
        return found

    def forget(self, classes: FolderClasses) -> None:
        """Remove what says that the folder is complete, before its files are replaced."""
        for name in (_VOCABULARY, _INDEX) if classes.fate == "replaced" else (_INDEX,):
            (self.path / name).unlink(missing_ok=True)

    def write(
        self,
        classes: FolderClasses,
        ignore_label: int,
        run: Mapping[str, Any],
        files: Mapping[Path, str],
        earlier: list[dict[str, Any]],
    ) -> None:
        """Write class list and index, when all label files are there.

        Args:
            classes: see `classes`.
            ignore_label: of the files of this run.
            run: its ``from``, ``source`` and ``unknown``.
            files: label file -> what it was made of.
            earlier: see `earlier_runs`, asked before anything was written.

        Raises:
            OutputError: one cannot be written.
        """
        vocabulary = Vocabulary.from_text(classes.text, "", _VOCABULARY)
        content = {
            "format": 1,
            "classes": {entry.id: entry.name for entry in vocabulary.classes},
            "ignore_label": ignore_label,
            **run,
            "files": {self._name(path): source for path, source in files.items()},
            "earlier": earlier,
        }
        if classes.fate not in ("same", "kept"):
            write_atomic(self.path / _VOCABULARY, classes.text)
        write_atomic(self.path / _INDEX, json_text(content, indent=1) + "\n")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()
