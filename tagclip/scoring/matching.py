"""Somebody else's class list: which class of the dataset each of its classes is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tagclip.errors import VocabularyError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.class_names import name_key
from tagclip.utils.text import did_you_mean, listed

__all__ = ["ClassMatch", "match_classes"]

_LISTED = 10


@dataclass(frozen=True)
class ClassMatch:
    """What the values of predictions mean.

    Attributes:
        indices: value of a prediction -> index in the dataset's class list, -1 for no class.
        missing: classes of the dataset that the predictor's list lacks.
        extra: classes of its list that the dataset lacks, which count as no class.
    """

    indices: Mapping[int, int]
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


def match_classes(
    names: Mapping[int, str], vocabulary: Vocabulary, where: str, allow_extra: bool = False
) -> ClassMatch:
    """Match classes by name, never by position.

    Args:
        names: the predictor's classes: name by value.
        vocabulary: of the dataset.
        where: what messages call the list.
        allow_extra: pixels of classes that the dataset lacks are of no class, instead of an error.

    Raises:
        VocabularyError: a name is no class of the dataset, or only a synonym of one.
    """
    known = {name_key(name): index for index, name in enumerate(vocabulary.names)}
    indices = {value: known.get(name_key(name), -1) for value, name in names.items()}
    extra = tuple(dict.fromkeys(names[value] for value, index in indices.items() if index < 0))
    for name in extra:
        owner = next((e.name for e in vocabulary.classes if name_key(name) in e.keys), None)
        if owner is not None:
            raise VocabularyError(
                f"{where}: found {name!r}, a synonym of {owner!r} in {vocabulary.name}; if it is "
                "the same class, write that name in the list"
            )
    if extra and not allow_extra:
        hint = did_you_mean(extra[0], vocabulary.names)
        raise VocabularyError(
            f"{where}: found {listed([repr(n) for n in extra], _LISTED)}, no class of "
            f"{vocabulary.name}{hint}; write the dataset's names, or let pixels of these classes "
            "count as no class: --extra-classes other"
        )
    found = set(indices.values())
    missing = tuple(name for k, name in enumerate(vocabulary.names) if k not in found)
    return ClassMatch(indices, missing, extra)
