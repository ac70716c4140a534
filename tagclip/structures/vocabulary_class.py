"""One class of a vocabulary, and how names are compared."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.utils.logger import log_first_n

from tagclip.errors import VocabularyError
from tagclip.utils.class_names import checked_name, name_key, refuse_duplicates
from tagclip.utils.text import did_you_mean, listed

__all__ = [
    "MAX_LABEL",
    "ClassEntry",
    "checked_color",
    "format_names",
    "is_int",
    "name_flags",
]

# The largest value of a 16-bit label file.
MAX_LABEL = 65535


def format_names(names: Iterable[str], limit: int = 10) -> str:
    """Join names for a message, at most `limit` of them, sorted."""
    return listed([repr(name) for name in sorted(names)], limit)


def is_int(value: object) -> bool:
    """True for integers of Python and numpy, not for truth values."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


@dataclass(frozen=True)
class ClassEntry:
    """One class of a vocabulary.

    Attributes:
        id: value of the class in the label files, 0..65535, and in what is written.
        name: display name, unique in its vocabulary; runs of white space become one blank, which
            is logged.
        prompts: names that are put into the prompt templates; defaults to ``(name,)``.
        color: (red, green, blue), each 0..255, or None for that of the name.
        ids: all values of the class in the label files, `id` first; defaults to ``(id,)``.

    Raises:
        VocabularyError: a field has the wrong type or range, or a prompt occurs twice.
    """

    id: int
    name: str
    prompts: tuple[str, ...] = ()
    color: tuple[int, int, int] | None = None
    ids: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The display name and every other prompt."""
        return tuple(dict.fromkeys((self.name, *self.prompts)))

    @property
    def keys(self) -> set[str]:
        """`name_key` of the name and of every prompt."""
        return set(map(name_key, self.names))

    def __post_init__(self) -> None:
        where = f"class {self.name!r}"
        if not is_int(self.id) or not 0 <= self.id <= MAX_LABEL:
            raise VocabularyError(
                f"{where}: id is {self.id!r}, expected an integer in 0..{MAX_LABEL}, "
                "the value of this class in the label files"
            )
        if isinstance(self.prompts, str) or not isinstance(self.prompts, Sequence):
            raise VocabularyError(
                f"{where}: prompts is {self.prompts!r}, expected a list of texts; put it in [ ]"
            )
        object.__setattr__(self, "id", int(self.id))
        object.__setattr__(self, "ids", self._checked_ids(where))
        object.__setattr__(self, "name", _clean(self.name, f"name of the class with id {self.id}"))
        prompts = tuple(_clean(prompt, f"{where}: prompt") for prompt in self.prompts)
        object.__setattr__(self, "prompts", prompts or (self.name,))
        refuse_duplicates(self.prompts, f"{where}: prompts")
        if self.color is not None:
            object.__setattr__(self, "color", checked_color(self.color, f"{where}: color"))

    def _checked_ids(self, where: str) -> tuple[int, ...]:
        ids = self.ids or (self.id,)
        is_list = isinstance(ids, Sequence) and not isinstance(ids, str)
        if not is_list or not all(is_int(value) and 0 <= value <= MAX_LABEL for value in ids):
            raise VocabularyError(
                f"{where}: ids is {ids!r}, expected a list of integers in 0..{MAX_LABEL}, all "
                "values of this class in the label files"
            )
        if self.id not in ids or len(set(ids)) < len(ids):
            raise VocabularyError(
                f"{where}: ids is {list(ids)}, expected {self.id}, its id, among them and each "
                "value once"
            )
        return (self.id, *(int(value) for value in ids if value != self.id))


def _clean(text: object, what: str) -> str:
    clean = checked_name(text, what)
    if clean != text.strip():
        line = f"{what}: {text!r} is taken as {clean!r}"
        log_first_n(logging.INFO, line, key="message", name=__name__)
    return clean


def checked_color(color: object, where: str) -> tuple[int, int, int]:
    """Return a colour of a json; ``where`` begins the message.

    Raises:
        VocabularyError: it is something else.
    """
    is_triple = isinstance(color, Sequence) and not isinstance(color, str) and len(color) == 3
    if not is_triple or not all(is_int(c) and 0 <= c <= 255 for c in color):
        raise VocabularyError(
            f"{where} is {color!r}, expected [red, green, blue] with integers in 0..255"
        )
    return tuple(int(c) for c in color)


def name_flags(listed: Sequence[str], names: Sequence[str], where: str) -> list[bool]:
    """Whether a list of class names holds each of all names, however they are spelt.

    Raises:
        VocabularyError: the list has another name; ``where`` begins the message.
    """
    keys = [name_key(name) for name in names]
    unknown = [name for name in listed if name_key(name) not in keys]
    if unknown:
        hint = did_you_mean(unknown[0], names) or f"; the classes are {format_names(names)}"
        raise VocabularyError(f"{where} names {format_names(unknown)}, no class{hint}")
    wanted = set(map(name_key, listed))
    return [key in wanted for key in keys]
