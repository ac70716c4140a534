"""Provenance: whose masks a model has learned from, in its own training and in all before it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import SequenceMatcher
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.class_names import name_key
from tagclip.utils.untrusted import load_json

__all__ = ["Provenance", "Stage"]

# Compared without blanks and punctuation, so similar ratios mean the same for short words.
_SIMILAR = 0.8
# "table" at the end of "diningtable" is a question, "car" at the end of "scar" is none.
_HEAD_NOUN = 4


@dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
        setting: DATASETS.ZERO_SHOT.SETTING; "unknown" where a checkpoint does not tell.
        split: name of the split; "" if none.
        vocabulary: name of the class list.
        fingerprint: `Vocabulary.partition_fingerprint` of it; "" where unknown.
        datasets: registered names of the training sets.
        masks: classes whose human masks were read with their names: all names of each, the display
            name first.
        others: the other classes of the list in the same form.
        pseudo_labels: names of the classes that the model's own predictions stood for.
        positions: names of the classes of which only was read where any of them is.
        start: file that the training started from; "" is CLIP.
        start_sha256: of that file; "" for CLIP.
    """

    setting: str = "unknown"
    split: str = ""
    vocabulary: str = ""
    fingerprint: str = ""
    datasets: tuple[str, ...] = ()
    masks: tuple[tuple[str, ...], ...] = ()
    others: tuple[tuple[str, ...], ...] = ()
    pseudo_labels: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    start: str = ""
    start_sha256: str = ""

    def __str__(self) -> str:
        name = ":".join(filter(None, (self.vocabulary, self.split)))
        return f"{self.setting} {name}".strip()


@dataclass(frozen=True)
class Provenance:
    """The trainings behind a model, the first one first; none is CLIP as it was published.

    CLIP's own image texts are no masks and do not count.

    Attributes:
        stages: what is known.
        is_complete: False if something before or between them is not known.
    """

    stages: tuple[Stage, ...] = ()
    is_complete: bool = True

    def then(self, stage: Stage) -> Provenance:
        """What a further training makes of it."""
        return Provenance((*self.stages, stage), self.is_complete)

    def trained(self, vocabulary: Vocabulary) -> tuple[bool, ...]:
        """K flags: whether any stage read masks of the class.

        A class is one of a stage if it shares a name or a prompt with it, however spelt, or if
        both are labels of known datasets for the same thing.
        """
        flags = [False] * len(vocabulary)
        for stage in self.stages:
            masks = {key for names in stage.masks for key in _keys(names)}
            # A list that holds the class itself without masks has told it from its synonyms.
            others = {_compact(names[0]) for names in stage.others}
            for index, entry in enumerate(vocabulary.classes):
                if _keys(entry.names) & masks and _compact(entry.name) not in others:
                    flags[index] = True
        return tuple(flags)

    def touched(self, vocabulary: Vocabulary, kind: str) -> list[str]:
        """Names of the classes that a stage has learned about without their masks.

        Args:
            vocabulary: class list.
            kind: ``pseudo_labels`` or ``positions``, see `Stage`.
        """
        keys: set[str] = set()
        for stage in self.stages:
            wanted = getattr(stage, kind)
            lists = (*stage.masks, *stage.others, *((name,) for name in wanted))
            keys |= {key for names in lists if names[0] in wanted for key in _keys(names)}
        return [entry.name for entry in vocabulary.classes if _keys(entry.names) & keys]

    def similar(self, vocabulary: Vocabulary, classes: Iterable[str]) -> list[tuple[str, str]]:
        """Pairs of names that may mean the same, which nothing but a person can decide.

        Args:
            vocabulary: class list.
            classes: those of its names that are compared.

        Returns:
            (class, class with masks in a stage): alike in spelling, or one the other's last word.
            A stage whose own list holds the class has told the two apart.
        """
        wanted, pairs = set(classes), []
        for entry in vocabulary.classes:
            if entry.name not in wanted:
                continue
            own = _keys(entry.names)
            for stage in self.stages:
                if any(own & _keys(names) for names in (*stage.masks, *stage.others)):
                    continue
                pairs += [(entry.name, n[0]) for n in stage.masks if _similar(entry.names, n)]
        return list(dict.fromkeys(pairs))

    @property
    def history(self) -> str:
        """One line: CLIP, every stage, and whether something is missing."""
        steps = ["CLIP" if self.is_complete else "ancestry unknown", *map(str, self.stages)]
        return " > ".join(steps)

    def to_json(self) -> dict[str, Any]:
        """Numbers, text, and lists of them."""
        return {
            "is_complete": self.is_complete,
            "stages": [_listed(asdict(stage)) for stage in self.stages],
        }

    @classmethod
    def from_json(cls, tree: object) -> Provenance:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(tree, dict) or tree.keys() != {"is_complete", "stages"}:
            raise ValueError("expected is_complete and stages")
        if not isinstance(tree["is_complete"], bool) or not isinstance(tree["stages"], list):
            raise ValueError("expected a truth value and a list")
        return cls(tuple(map(_read_stage, tree["stages"])), tree["is_complete"])


def _read_stage(tree: object) -> Stage:
    depths = {field.name: field.type.count("tuple") for field in fields(Stage)}
    if not isinstance(tree, dict) or not tree.keys() <= depths.keys():
        raise ValueError(f"expected a stage with {', '.join(depths)}")
    return Stage(**{key: _frozen(value, depths[key], key) for key, value in tree.items()})


def _frozen(value: object, depth: int, key: str) -> Any:
    """Text, or tuples of it in tuples."""
    if not isinstance(value, list if depth else str):
        raise ValueError(f"{key} is {value!r:.60}, expected {'a list' if depth else 'a text'}")
    if not depth:
        return value
    if depth == 1 and key in ("masks", "others") and not value:
        raise ValueError(f"{key} holds a class without a name")
    return tuple(_frozen(item, depth - 1, key) for item in value)


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _compact(name: str) -> str:
    """What spellings with and without blanks, hyphens and dots have in common."""
    key = name_key(name)
    return "".join(c for c in key if unicodedata.category(c)[0] not in "ZPC") or key


def _keys(names: Sequence[str]) -> set[str]:
    groups = _same_labels()
    return {groups.get(key, key) for key in map(_compact, names)}


@cache
def _same_labels() -> dict[str, str]:
    """Compact spelling of a known label -> that of the first one of its group."""
    path = Path(__file__).with_name("same_labels.json")
    groups = load_json(path.read_text(encoding="utf-8"))["groups"]
    return {_compact(name): _compact(group[0]) for group in groups for name in group}


def _similar(names: Sequence[str], others: Sequence[str]) -> bool:
    pairs = list(product(names, others))
    is_turned = any(_words(a) == _words(b) for a, b in pairs)
    return is_turned or any(_may_be_one(_compact(a), _compact(b)) for a, b in pairs)


def _words(name: str) -> list[str]:
    """ "ball, red" has those of "red ball"."""
    return sorted(map(_compact, name.split()))


def _may_be_one(a: str, b: str) -> bool:
    short, long = sorted((a, b), key=len)
    if len(short) >= _HEAD_NOUN and long.endswith(short):
        return True
    return SequenceMatcher(None, a, b).ratio() >= _SIMILAR
