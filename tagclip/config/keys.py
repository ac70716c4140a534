"""What a row of the config's table can say, and the check of a value against it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from types import GenericAlias, NoneType, UnionType
from typing import Any, get_args

import numpy as np

from tagclip.errors import ConfigError
from tagclip.utils.text import did_you_mean

__all__ = ["DETECTRON2", "Key"]

# Default of a row whose key detectron2 has and whose value stays as it is there.
DETECTRON2 = object()
_NOUNS = {
    bool: ("True or False", "truth values"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    list: ("a list", "lists"),
    tuple: ("a list", "lists"),
}


@dataclass(frozen=True)
class Key:
    """A config key: its default, its meaning, and the values that make sense.

    Attributes:
        name: such as ``MODEL.CLIP.NAME``.
        default: value that `add_tagclip_config` sets; `DETECTRON2` leaves detectron2's.
        text: meaning, for docs/config.md.
        kind: type of the value, such as ``float``, ``list[str]`` or ``float | None``; without one
            that of the default. A whole number is a float, too, and a tuple a list.
        choices: the only values.
        low, high: inclusive bounds of numbers.
        above, below: exclusive bounds. A number has one on either side: a count or size without
            limit overflows in what is built of it. It is above what it is above in float32, too,
            as which it is computed with.
        also: a number beside those, which switches off what the key limits.
        letters: a text consists of these, one at least.
        length: number of items of a list, or two as "0 or 3"; "some" is at least one, None any.
        ascending: whether no item may be lower than the one before.
        when: name of a switch; where that is off, the value is not looked at.
    """

    name: str
    default: Any
    text: str
    kind: Any = None
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    also: float | None = None
    letters: str = ""
    length: int | str | None = None
    ascending: bool = False
    when: str = ""

    @classmethod
    def from_row(cls, name: str, row: dict[str, Any]) -> Key:
        """Make a key of its row in keys.yaml; ``kind`` stands there as it does in annotations."""
        words = {"kind": _kind(row["kind"])} if "kind" in row else {}
        return cls(name, **{"default": DETECTRON2, **row, **words})

    def check(self, value: Any) -> None:
        """Refuse a value that makes no sense.

        Raises:
            ConfigError: says what was found and what is expected.
        """
        if self._accepts(value):
            return
        hint = did_you_mean(value, map(str, self.choices)) if isinstance(value, str) else ""
        if isinstance(value, float) and self.above is not None and value > self.above:
            hint = "" if self._is_above(value) else f"; in float32 it is {self.above}"
        raise ConfigError(f"{self.name}: found {value!r:.200}, expected {self.expected}{hint}")

    @cached_property
    def path(self) -> tuple[str, ...]:
        """The parts of its name."""
        return tuple(self.name.split("."))

    @cached_property
    def expected(self) -> str:
        """The values that make sense, in words."""
        if self.choices:
            return " or ".join(map(repr, self.choices))
        return " or ".join(map(self._describe, self._kinds))

    def _describe(self, kind: Any) -> str:
        if kind is NoneType:
            return "null"
        items = get_args(kind)
        one, several = (" ".join((n, *self._bounds())) for n in _NOUNS[(*items, kind)[0]])
        if items:
            count = {None: "", "some": "one or more "}.get(self.length, f"{self.length} ")
            return f"a list of {count}{several}{', ascending' * self.ascending}"
        one = one if self.also is None else f"{self.also}, or {one}"
        return f"{one} of the letters {' and '.join(self.letters)}" if self.letters else one

    def _bounds(self) -> list[str]:
        if self.low is not None and self.high is not None:
            return [f"from {self.low} to {self.high}"]
        bounds = (
            ("of at least", self.low),
            ("above", self.above),
            ("and below" if self.low is not None else "below", self.below),
            ("and at most" if self.above is not None else "of at most", self.high),
        )
        return [f"{words} {bound}" for words, bound in bounds if bound is not None]

    @cached_property
    def _kinds(self) -> tuple[Any, ...]:
        if isinstance(self.kind, UnionType):
            return get_args(self.kind)
        if self.kind is None and self.default and isinstance(self.default, list):
            return (list[type(self.default[0])],)
        return (self.kind or type(self.default),)

    def _accepts(self, value: Any) -> bool:
        if self.choices:
            # 0 and 1 equal truth values.
            return any(type(value) is type(c) and value == c for c in self.choices)
        return any(self._is_a(kind, value) for kind in self._kinds)

    def _is_a(self, kind: Any, value: Any) -> bool:
        if isinstance(kind, GenericAlias):
            return isinstance(value, (list, tuple)) and self._is_list_of(kind.__args__[0], value)
        if isinstance(value, bool):
            return kind is bool
        if kind in (int, float):
            return isinstance(value, (int, kind)) and self._is_inside(value)
        if not self.letters:
            return isinstance(value, kind)
        return isinstance(value, kind) and set() < set(value) <= set(self.letters)

    def _is_list_of(self, kind: type, values: list | tuple) -> bool:
        lengths = str(self.length).split(" or ")
        is_long_enough = bool(values) if self.length == "some" else str(len(values)) in lengths
        return (
            (self.length is None or is_long_enough)
            and all(self._is_a(kind, value) for value in values)
            and (not self.ascending or list(values) == sorted(values))
        )

    def _is_inside(self, number: float) -> bool:
        # Not a number is inside of nothing.
        return number == self.also or (
            -math.inf < number < math.inf
            and (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.below is None or number < self.below)
            and (self.above is None or self._is_above(number))
        )

    def _is_above(self, number: float) -> bool:
        # float32 has none for a very large whole number, which other bounds refuse before.
        with np.errstate(over="ignore"):
            return number > self.above and bool(np.float32(number) > self.above)


def _kind(text: str) -> Any:
    """``float``, ``list[str]`` or ``float | null`` -> the type."""
    kinds = {"null": NoneType, **{kind.__name__: kind for kind in _NOUNS}}
    found = []
    for word in text.split(" | "):
        outer, _, item = word.rstrip("]").partition("[")
        found.append(kinds[outer][kinds[item]] if item else kinds[outer])
    return reduce(or_, found)
