"""Vocabulary: an ordered list of classes, which of them are seen, and how labels map to it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import tagclip
from tagclip.errors import DatasetError, VocabularyError
from tagclip.structures.class_color import name_color
from tagclip.structures.vocabulary_class import (
    MAX_LABEL,
    ClassEntry,
    checked_color,
    is_int,
    name_flags,
)
from tagclip.structures.vocabulary_json import parse_vocabulary_json, read_vocabulary_text
from tagclip.utils.class_names import name_key, refuse_duplicates
from tagclip.utils.files import expand_path
from tagclip.utils.text import did_you_mean, json_text

__all__ = ["ClassEntry", "Vocabulary"]


@dataclass(frozen=True)
class Vocabulary:
    """An ordered class list. Index k of a label or score map means ``classes[k]``.

    Attributes:
        name: what messages and results call it.
        classes: K >= 1 entries with unique names and ids.
        seen: K flags, True for classes with training labels; None while nothing is known.
        split: name of the split that `seen` came from; "" if none.
        ignore_label: value of unlabelled pixels in the label files, 0..65535, no class id.
        more_ignored: further values of unlabelled pixels there.
        ignore_colors: colours of unlabelled pixels in label files whose classes are colours.
        labels: what the pixels of the label files are: "ids", "colors", or "" to tell by each file
            (`tagclip.data.label_io.read_label`).

    Raises:
        VocabularyError: the list is empty, names or ids repeat, or `seen` does not fit.
    """

    name: str
    classes: tuple[ClassEntry, ...]
    seen: tuple[bool, ...] | None = None
    split: str = ""
    ignore_label: int = 255
    more_ignored: tuple[int, ...] = ()
    ignore_colors: tuple[tuple[int, int, int], ...] = ()
    labels: str = ""

    def __post_init__(self) -> None:
        where = f"vocabulary {self.name!r}"
        self._take_lists(where)
        if not self.classes:
            raise VocabularyError(f"{where}: the class list is empty; name at least one class")
        refuse_duplicates(self.names, f"{where}: class names")
        ids = [value for entry in self.classes for value in entry.ids]
        twice = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
        if twice:
            raise VocabularyError(
                f"{where}: ids {', '.join(map(str, twice))} belong to more than one class; "
                "give every class its own label value"
            )
        for value in self.ignored:
            if not is_int(value) or not 0 <= value <= MAX_LABEL:
                raise VocabularyError(
                    f"{where}: ignore_label is {value!r}, expected 0..{MAX_LABEL}"
                )
            if value in ids:
                name = next(entry.name for entry in self.classes if value in entry.ids)
                raise VocabularyError(
                    f"{where}: ignore_label {value} is also the id of {name!r}; set another "
                    "ignore_label"
                )
        if len(set(self.ignored)) < len(self.ignored):
            raise VocabularyError(
                f"{where}: ignore_label is {list(self.ignored)}, expected each value once"
            )
        self._check_colors(where)
        if self.seen is not None:
            flags = _as_tuple(self.seen, f"{where}: seen: ", "truth values, one per class")
            if len(flags) != len(self) or not all(isinstance(f, (bool, np.bool_)) for f in flags):
                raise VocabularyError(
                    f"{where}: found seen {flags!r}, expected {len(self)} truth values, one per "
                    "class"
                )
            object.__setattr__(self, "seen", tuple(map(bool, flags)))

    def _take_lists(self, where: str) -> None:
        """Make tuples of the fields that are lists."""
        for name in ("more_ignored", "ignore_colors"):
            value = _as_tuple(getattr(self, name), f"{where}: {name}: ", "a list")
            object.__setattr__(self, name, value)
        expected = "a list of ClassEntry (Vocabulary.from_names takes names)"
        object.__setattr__(
            self, "classes", _as_tuple(self.classes, f"{where}: classes: ", expected)
        )
        for entry in self.classes:
            if not isinstance(entry, ClassEntry):
                raise VocabularyError(f"{where}: classes: found {entry!r:.80}, expected {expected}")

    def _check_colors(self, where: str) -> None:
        if self.labels not in ("", "ids", "colors"):
            raise VocabularyError(f"{where}: labels is {self.labels!r}, expected 'ids' or 'colors'")
        for color in self.ignore_colors:
            checked_color(color, f"{where}: ignore_color")
            owner = next((e.name for e in self.classes if e.color == tuple(color)), None)
            if owner is not None:
                raise VocabularyError(
                    f"{where}: ignore_color {list(color)} is also the color of {owner!r}; change "
                    "one of them"
                )
        colors = [entry.color for entry in self.classes]
        if self.labels == "colors" and (None in colors or len(set(colors)) < len(colors)):
            found = f"{colors.count(None)} classes without" if None in colors else "a repeated"
            raise VocabularyError(
                f"{where}: labels is 'colors', found {found} color, expected one of its own for "
                "every class"
            )

    @classmethod
    def from_names(
        cls,
        names: Sequence[str],
        seen: Sequence[bool] | Iterable[str] | None = None,
        name: str = "custom",
    ) -> Vocabulary:
        """Build from bare names, with ids 0..K-1.

        Args:
            names: K class names.
            seen: K flags, or the names of the seen classes; None leaves the partition open.
            name: what messages call the vocabulary.
        """
        if isinstance(names, str):
            raise VocabularyError(f"class names are one text, {names!r}; expected a list of names")
        # An index means a class: a set has no order, that of a mapping may not be that of its ids.
        names = _as_tuple(names, "class names: ", "a list of names", (Set, Mapping))
        entries = tuple(ClassEntry(index, text) for index, text in enumerate(names))
        vocabulary = cls(name, entries, ignore_label=255 if len(entries) <= 255 else MAX_LABEL)
        return vocabulary if seen is None else vocabulary.with_seen(seen)

    @classmethod
    def from_json(cls, path: str | Path, split: str = "") -> Vocabulary:
        """Read a vocabulary json (format: `tagclip.structures.vocabulary_json`).

        Args:
            path: the json file.
            split: name of one of its splits; "" takes its ``default_split``, and without one
                leaves the partition open.

        Raises:
            VocabularyError: the file is missing or inconsistent, or has no such split.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise VocabularyError(
                f"vocabulary json: found {path!r:.80}, expected its path; a list of names is for "
                "Vocabulary.from_names"
            )
        path = expand_path(path)
        return cls.from_text(read_vocabulary_text(path), split, path)

    @classmethod
    def from_text(cls, text: str, split: str, where: str) -> Vocabulary:
        """Take the content of a vocabulary json instead of the file (see `from_json`).

        Args:
            text: the json.
            split: as in `from_json`.
            where: what messages call it.

        Raises:
            VocabularyError: it is inconsistent, or has no such split.
        """
        try:
            return cls(**parse_vocabulary_json(text, split))
        except VocabularyError as error:
            raise VocabularyError(f"{where}: {error}") from error

    @classmethod
    def from_metadata(cls, dataset_name: str, split: str = "") -> Vocabulary:
        """Read the vocabulary json of a registered dataset (see `from_json`).

        Raises:
            DatasetError: no dataset of this name is registered with a vocabulary.
        """
        tagclip.register()
        from detectron2.data import DatasetCatalog, MetadataCatalog

        names = DatasetCatalog.list()
        paths = {name: MetadataCatalog.get(name).get("vocabulary") for name in names}
        if not isinstance(dataset_name, str) or paths.get(dataset_name) is None:
            found = "registered without a vocabulary"
            if dataset_name not in names:
                useful = (name for name, path in paths.items() if path)
                found = f"not registered{did_you_mean(dataset_name, useful)}"
            raise DatasetError(
                f"dataset {dataset_name!r} is {found}; check DATASETS.TRAIN and DATASETS.TEST, use "
                "register_zero_shot_sem_seg, or name its project in PROJECTS"
            )
        return cls.from_json(paths[dataset_name], split)

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        """K display names."""
        return [entry.name for entry in self.classes]

    @property
    def prompts(self) -> list[tuple[str, ...]]:
        """The names of each of the K classes that go into the templates, at least one each."""
        return [entry.prompts for entry in self.classes]

    @property
    def by_value(self) -> dict[int, ClassEntry]:
        """Class of each value that label files may have for one."""
        return {value: entry for entry in self.classes for value in entry.ids}

    @property
    def value_names(self) -> dict[int, str]:
        """Name of the class of each of these values."""
        return {value: entry.name for value, entry in self.by_value.items()}

    @property
    def ignored(self) -> tuple[int, ...]:
        """All values of unlabelled pixels, `ignore_label` first."""
        return (self.ignore_label, *self.more_ignored)

    @property
    def colors(self) -> np.ndarray:
        """(K, 3) uint8 RGB: the given ones, and those of the names (`name_color`)."""
        colors = [entry.color or name_color(entry.name) for entry in self.classes]
        return np.array(colors, dtype=np.uint8)

    @property
    def seen_mask(self) -> np.ndarray:
        """(K,) bool, True for seen classes.

        Raises:
            VocabularyError: the partition is open.
        """
        if self.seen is None:
            raise VocabularyError(
                f"vocabulary {self.name!r}: nothing says which classes are seen; name a split or "
                "use match_seen(training vocabulary)"
            )
        return np.array(self.seen, dtype=bool)

    @property
    def num_seen(self) -> int:
        """Number of seen classes."""
        return int(self.seen_mask.sum())

    @property
    def unseen_names(self) -> list[str]:
        """Names of the unseen classes, in order."""
        return [n for n, seen in zip(self.names, self.seen_mask, strict=True) if not seen]

    @property
    def ignore_index(self) -> int:
        """Value of ignored pixels in re-indexed labels: 255, or K with more than 255 classes."""
        return 255 if len(self) <= 255 else len(self)

    @property
    def target_dtype(self) -> type[np.generic]:
        """Type of re-indexed labels: uint8, or int32 with more than 255 classes."""
        return np.uint8 if len(self) <= 255 else np.int32

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of class names, prompts, ids, their order and the ignored values."""
        # One value is itself, not a list of one: so it has been in all files of results.
        content = [
            [entry.id if len(entry.ids) == 1 else entry.ids, entry.name, entry.prompts]
            for entry in self.classes
        ]
        text = json_text([content, self.ignored if self.more_ignored else self.ignore_label])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def color_fingerprint(self) -> str:
        """sha256 (hex) of the colours by which label files may be read; "" where none is."""
        colors = [(entry.id, entry.color) for entry in self.classes if entry.color]
        if self.labels == "ids" or not colors:
            return ""
        text = json_text([self.labels, colors, self.ignore_colors])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def partition_fingerprint(self) -> str:
        """sha256 (hex) of `fingerprint` and the seen flags."""
        return hashlib.sha256(json_text([self.fingerprint, self.seen]).encode()).hexdigest()

    def restrict(self, part: str) -> Vocabulary:
        """Keep the "seen" or the "unseen" classes, in order, with their ids.

        Raises:
            VocabularyError: the part is empty, or the partition is open.
        """
        if part not in ("seen", "unseen"):
            raise VocabularyError(f"part is {part!r}, expected 'seen' or 'unseen'")
        keep = self.seen_mask == (part == "seen")
        if not keep.any():
            raise VocabularyError(
                f"vocabulary {self.name!r}, split {self.split!r}: no class is {part}; "
                "choose another split"
            )
        classes = tuple(entry for entry, kept in zip(self.classes, keep, strict=True) if kept)
        seen = (part == "seen",) * len(classes)
        return replace(self, name=f"{self.name}:{part}", classes=classes, seen=seen)

    def with_seen(self, seen: Sequence[bool] | Iterable[str]) -> Vocabulary:
        """Set the partition: K flags, or the names of the seen classes.

        Raises:
            VocabularyError: the number of flags is wrong, or a name is unknown.
        """
        where, expected = f"vocabulary {self.name!r}: seen: ", "truth values, or names of classes"
        flags = (
            [seen] if isinstance(seen, str) else list(_as_tuple(seen, where, expected, (Mapping,)))
        )
        if not flags or not all(isinstance(flag, (bool, np.bool_)) for flag in flags):
            flags = name_flags(list(map(str, flags)), self.names, f"vocabulary {self.name!r}: seen")
        return self._partitioned(flags)

    def _partitioned(self, flags: Iterable[bool]) -> Vocabulary:
        flags = tuple(map(bool, flags))
        return replace(self, seen=flags, split=self.split if flags == self.seen else "")

    def match_seen(self, training: Vocabulary) -> Vocabulary:
        """Call a class seen if one of its names or prompts is one of a class seen in training.

        Case and spacing do not count (the overlap rule of FC-CLIP, arXiv:2308.02487).

        Raises:
            VocabularyError: the partition of `training` is open.
        """
        trained: set[str] = set()
        for entry, seen in zip(training.classes, training.seen_mask, strict=True):
            if seen:
                trained |= entry.keys
        return self._partitioned(bool(entry.keys & trained) for entry in self.classes)

    def joined(self, others: Vocabulary) -> Vocabulary:
        """Return both class lists, the others behind, without those that this one has already.

        Ids mean label values, of which the result has none: they count from 0.

        Raises:
            VocabularyError: a partition is open.
        """
        taken = set().union(*(entry.keys for entry in self.classes))
        pairs = zip(others.classes, others.seen_mask, strict=True)
        extra = [(entry, bool(seen)) for entry, seen in pairs if not entry.keys & taken]
        classes = (*self.classes, *(entry for entry, _ in extra))
        classes = tuple(replace(entry, id=index, ids=()) for index, entry in enumerate(classes))
        return Vocabulary(
            f"{self.name}+{others.name}",
            classes,
            (*map(bool, self.seen_mask), *(seen for _, seen in extra)),
            ignore_label=max(255, len(classes)),
        )

    def match_colors(self, other: Vocabulary) -> Vocabulary:
        """Give classes without a colour the one that the other list gives to a class so called."""
        given = {name_key(entry.name): entry.color for entry in other.classes}
        classes = (
            replace(entry, color=entry.color or given.get(name_key(entry.name)))
            for entry in self.classes
        )
        return replace(self, classes=tuple(classes))

    def label_lut(self, target: Vocabulary | None = None) -> np.ndarray:
        """Table from raw label values of this dataset to indices of another class list.

        Args:
            target: class list of the result, matched by name; None is this vocabulary.

        Returns:
            int32, up to the highest value that means something. Entry v is the index in `target`
            of the class with v among its ids; `target.ignore_index` if v is ignored or its class is
            not in `target`; -1 if v means nothing in this dataset.
        """
        target = self if target is None else target
        indices = {name_key(name): index for index, name in enumerate(target.names)}
        highest = max(*self.ignored, *self.by_value)
        lut = np.full(highest + 1, -1, dtype=np.int32)
        lut[list(self.ignored)] = target.ignore_index
        for entry in self.classes:
            lut[list(entry.ids)] = indices.get(name_key(entry.name), target.ignore_index)
        return lut


def _as_tuple(
    items: Any, where: str, expected: str, refused: tuple[type, ...] = ()
) -> tuple[Any, ...]:
    """Items of a list, a generator or an array; of a text they would be letters."""
    try:
        iter(items)
        is_list = not isinstance(items, (str, bytes, *refused))
    except TypeError:
        is_list = False
    if not is_list:
        raise VocabularyError(f"{where}found {items!r:.80}, expected {expected}")
    return tuple(items)
