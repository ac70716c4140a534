"""What the values of a benchmark's label files mean, and their conversion to vocabulary ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.class_names import name_key
from tagclip.utils.look_up import look_up

__all__ = ["LabelMap", "recognize_order"]

_FOLDER = Path(__file__).with_name("label_maps")
# ADE20K stores the object number in two bytes of its label files, the first of them times ten.
_HIGHEST_OBJECT = 25 * 256 + 255


@dataclass(frozen=True)
class LabelMap:
    """Values of one kind of label file, by class name, and the class list to convert them to.

    Attributes:
        name: name of the json in `label_maps`.
        class_names: class name by value.
        ignored: values without a class.
        vocabulary: class list of the result; classes that it lacks become ignored.
        background: name of the class of `vocabulary` that values without a class in it get; ""
            makes them its ignore label.
    """

    name: str
    class_names: Mapping[int, str]
    ignored: frozenset[int]
    vocabulary: Vocabulary
    background: str = ""

    @classmethod
    def read(cls, name: str, vocabulary: Vocabulary, background: str = "") -> LabelMap:
        """Read a json of the folder `label_maps`.

        Format 1: "classes" gives the class name of each value, "ignored" the values without one,
        or "object_numbers" for all those of ADE20K; the rest is for readers.

        Args:
            name: file name without ".json".
            vocabulary, background: see the attributes.
        """
        tree = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        names = {int(value): text for value, text in tree["classes"].items()}
        ignored = tree["ignored"]
        if ignored == "object_numbers":
            ignored = range(_HIGHEST_OBJECT + 1)
        return cls(name, names, frozenset(ignored) - names.keys(), vocabulary, background)

    @cached_property
    def table(self) -> np.ndarray:
        """int32; entry v is the vocabulary id of value v, -1 if v means nothing here."""
        ids = {name_key(entry.name): entry.id for entry in self.vocabulary.classes}
        rest = ids[name_key(self.background)] if self.background else self.vocabulary.ignore_label
        return self._table(ids, rest)

    def _table(self, numbers: Mapping[str, int], rest: int) -> np.ndarray:
        table = np.full(max(*self.class_names, *self.ignored) + 1, -1, dtype=np.int32)
        table[list(self.ignored)] = rest
        for value, name in self.class_names.items():
            table[value] = numbers.get(name_key(name), rest)
        return table

    @property
    def dtype(self) -> type[np.generic]:
        """Type of the result: uint8 if the vocabulary's ids and ignore label fit, else uint16."""
        highest = max(entry.id for entry in self.vocabulary.classes)
        return np.uint8 if max(highest, self.vocabulary.ignore_label) <= 255 else np.uint16

    def __call__(self, label: np.ndarray, path: str | Path) -> np.ndarray:
        """Convert a label.

        Args:
            label: (H, W) integers, values of this kind of file.
            path: its file, for the message.

        Returns:
            (H, W) `dtype`, ids and the ignore label of the vocabulary.

        Raises:
            DatasetError: a value means nothing in this kind of file.
        """
        ids = _looked_up(self.table, label)
        bad = ids < 0
        if bad.any():
            y, x = np.unravel_index(np.argmax(bad), bad.shape)
            values = np.unique(label[bad])
            shown = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
            raise DatasetError(
                f"{path}: value {label[y, x]} at ({x},{y}) is none of {self.name} "
                f"(found {shown}; it has {len(self.class_names)} classes up to "
                f"{max(self.class_names)}); the file belongs to another dataset or is converted "
                "already"
            )
        return ids.astype(self.dtype)

    def named(self, label: np.ndarray, names: Mapping[str, int]) -> np.ndarray:
        """Indices of class names, -1 for all values without one.

        Args:
            label: (H, W) integers.
            names: index by `name_key`.
        """
        return _looked_up(self._table(names, -1), label)


def _looked_up(table: np.ndarray, label: np.ndarray) -> np.ndarray:
    """table[label]; -1 for values outside the table."""
    # Both ends of the range lead to the last entry.
    places = np.clip(label.astype(np.intp), -1, len(table))
    return look_up(np.append(table, np.int32(-1)), places)


def recognize_order(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    reference: LabelMap,
    candidates: Mapping[str, LabelMap],
    claimed: str = "",
) -> str:
    """Find out what the values of converted label files mean, by other labels of the images.

    Of the pixels that the candidates read as different classes, the right one names most as the
    reference does, and twice as many as any other. Classes that only one side has do not count.

    Args:
        pairs: (H, W) converted and (H, W) reference labels of one image each; may be none.
        reference: what the reference's values mean.
        candidates: what the converted values may mean, at least two.
        claimed: the candidate that the user names; "" leaves it to the pairs.

    Returns:
        Key of the candidate.

    Raises:
        DatasetError: the labels contradict all candidates or the claim, or cannot decide.
    """
    agreed, decisive = _agreement(pairs, reference, candidates)
    best, second = sorted(agreed.values(), reverse=True)[:2]
    winner = max(agreed, key=lambda key: agreed[key])
    counts = ", ".join(f"{key} {count}" for key, count in agreed.items())
    evidence = f"of {decisive} pixels that decide, these orders explain: {counts}"
    if decisive and 2 * best < decisive:
        raise DatasetError(
            f"the converted labels follow no known class order ({evidence}), maybe they are "
            "shifted; convert the raw labels instead"
        )
    if claimed and decisive and 2 * agreed[claimed] < decisive:
        raise DatasetError(
            f"--order is {claimed}, but the converted labels are {winner} ({evidence}); leave "
            "--order out"
        )
    if not claimed and (not decisive or 2 * second > best):
        raise DatasetError(
            f"cannot tell the class order of the converted labels by other labels of the images "
            f"({evidence}); name it with --order: {' or '.join(candidates)}"
        )
    return claimed or winner


def _agreement(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    reference: LabelMap,
    candidates: Mapping[str, LabelMap],
) -> tuple[dict[str, int], int]:
    """Pixels that each candidate explains, and the number of those that decide."""
    known = {name_key(n) for m in candidates.values() for n in m.class_names.values()}
    known &= {name_key(name) for name in reference.class_names.values()}
    index = {name: number for number, name in enumerate(sorted(known))}
    agreed, decisive = dict.fromkeys(candidates, 0), 0
    for converted, truth in pairs:
        if converted.shape != truth.shape:
            raise DatasetError(
                f"cannot compare labels of {converted.shape} and {truth.shape} pixels (height, "
                "width); they are not of the same image"
            )
        true_names = reference.named(truth, index)
        read = {key: candidate.named(converted, index) for key, candidate in candidates.items()}
        planes = np.stack(list(read.values()))
        matters = (true_names >= 0) & (planes != planes[0]).any(axis=0)
        decisive += int(matters.sum())
        for key, names in read.items():
            agreed[key] += int((names == true_names)[matters].sum())
    return agreed, decisive
