"""Whether label files that are there keep their meaning when others are written beside them."""

from __future__ import annotations

from pathlib import Path

from tagclip.data.class_tables import ClassTable, vocabulary_text
from tagclip.errors import VocabularyError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_json import read_vocabulary_text
from tagclip.utils.class_names import name_key
from tagclip.utils.text import json_text, listed
from tagclip.utils.untrusted import load_json

__all__ = ["joined_text"]


def joined_text(path: Path, table: ClassTable) -> str:
    """The vocabulary json for the label files beside it and for those of another class list.

    Args:
        path: the vocabulary json that is there.
        table: of the label files to come, which hold the first id of each class and the ignore
            label.

    Returns:
        What is there, splits and all, behind whose classes stand those of the table that it lacks;
        without any, the same text.

    Raises:
        VocabularyError: it is damaged, a value of the files to come has another meaning there, or
            a split there has to say what a new class is.
    """
    text = read_vocabulary_text(path)
    there, vocabulary = Vocabulary.from_text(text, "", str(path)), table.vocabulary
    if there.labels == "colors":
        raise VocabularyError(
            f'{path}: found "labels": "colors", expected "ids", which are written'
        )
    if difference := _difference(there, vocabulary):
        raise VocabularyError(
            f"{path}: {difference} as this run writes it, so that label files there would change "
            "their meaning; keep the values that classes and ignored pixels have there, by one "
            "class list of all (--classes)"
        )
    trees = load_json(vocabulary_text(table))["classes"]
    pairs = zip(vocabulary.classes, trees, strict=True)
    added = [(entry, tree) for entry, tree in pairs if entry.id not in there.by_value]
    if not added:
        return text
    whole = load_json(text)
    whole["classes"] += [tree for _, tree in added]
    text = json_text(whole, indent=1) + "\n"
    names = listed([f"{entry.name!r} (id {entry.id})" for entry, _ in added], 5)
    Vocabulary.from_text(text, "", f"{path}: with {names} among its classes, as this run needs it")
    return text


def _difference(there: Vocabulary, new: Vocabulary) -> str:
    """Found and expected of the first value of new label files that does not fit; "" if all do."""
    owners = {name_key(entry.name): entry for entry in there.classes}
    for entry in new.classes:
        old, owner = there.by_value.get(entry.id), owners.get(name_key(entry.name))
        if entry.id in there.ignored:
            return f"found ignore for the value {entry.id}, expected {entry.name!r}"
        if old and old is not owner:
            return f"found {old.name!r} for the value {entry.id}, expected {entry.name!r}"
        if owner and old is None:
            return f"found the value {owner.id} for {owner.name!r}, expected {entry.id}"
    if new.ignore_label in there.ignored:
        return ""
    return f"found the ignore_label {there.ignore_label}, expected {new.ignore_label}"
