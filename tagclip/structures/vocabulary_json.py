"""The vocabulary json: a hand-editable file with classes and the splits by class name.

Format 1::

    {"format": 1, "name": "pets", "ignore_label": 255, "source_ids": "where the ids come from",
     "classes": [{"id": 0, "name": "cat", "prompts": ["cat", "kitten"], "color": [128, 0, 0]},
                 {"id": 1, "name": "dog"}],
     "default_split": "no_dog",
     "splits": {"no_dog": {"unseen": ["dog"]}}}

``ids`` instead of ``id`` lists several values of one class: ``{"ids": [1, 255], "name": "crack"}``;
what is written of it has the first. ``ignore_label`` may be a list, too. Of coloured label files
``color`` says which class is meant, and ``ignore_color``, one colour or a list, what is unlabelled.
``"labels": "colors"`` or ``"ids"`` settles what the pixels are; without it each file is judged by
itself (`tagclip.data.label_io.read_label`).

A split names its unseen classes, its seen classes, or both (then every class once).
Only "format", "name" and "classes" are required. "description" and "source" are for readers. A
class without "color" is drawn in that of its name (`tagclip.structures.class_color`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tagclip.errors import VocabularyError
from tagclip.structures.vocabulary_class import (
    ClassEntry,
    checked_color,
    format_names,
    is_int,
    name_flags,
)
from tagclip.utils.class_names import refuse_duplicates
from tagclip.utils.text import did_you_mean, one_line
from tagclip.utils.text_file import NotUtf8Error, read_text_file
from tagclip.utils.untrusted import load_json

__all__ = ["parse_vocabulary_json", "read_vocabulary_text", "split_names"]

_FORMAT = 1
_NOTES = ("description", "source")
_FILE_KEYS = (
    "format",
    "name",
    "ignore_label",
    "ignore_color",
    "labels",
    "source_ids",
    "classes",
    "default_split",
    "splits",
)
_CLASS_KEYS = ("id", "ids", "name", "prompts", "color")
_SPLIT_KEYS = ("seen", "unseen")


def parse_vocabulary_json(text: str, split: str = "") -> dict[str, Any]:
    """Read and check the text of a vocabulary json.

    Args:
        text: content of the file.
        split: name of one of its splits; "" takes its ``default_split``, if it has one.

    Returns:
        Arguments of `Vocabulary`; without a split ``seen`` is None.

    Raises:
        VocabularyError: it is no json, of another format, or inconsistent, or has no such split;
            the message names the place in it.
    """
    try:
        tree = load_json(text, object_pairs_hook=_unique_pairs)
    except (ValueError, VocabularyError) as error:
        raise VocabularyError(_unreadable(error)) from error
    _check_keys(tree, (*_FILE_KEYS, *_NOTES), ("format", "name", "classes"))
    if tree["format"] != _FORMAT or isinstance(tree["format"], bool):
        raise VocabularyError(f"format is {tree['format']!r}, expected {_FORMAT}")
    name, default = tree["name"], tree.get("default_split", "")
    if not isinstance(name, str) or not name.strip():
        raise VocabularyError(f"name is {name!r}, expected a text")
    classes = _read_classes(tree["classes"])
    splits = _read_splits(tree.get("splits", {}), [entry.name for entry in classes])
    if not isinstance(default, str):
        raise VocabularyError(f"default_split is {default!r}, expected a name")
    for wanted in (default, split):
        if wanted and wanted not in splits:
            raise VocabularyError(f"no split {wanted!r}; it has {format_names(splits) or 'none'}")
    chosen = split or default
    ignored = _listed(tree.get("ignore_label", 255), "ignore_label")
    colors = tree.get("ignore_color", [])
    # One colour is a list of three numbers.
    colors = [colors] if isinstance(colors, list) and colors and is_int(colors[0]) else colors
    if not isinstance(colors, list):
        raise VocabularyError(f"ignore_color is {colors!r}, expected [red, green, blue]")
    labels = tree.get("labels", "")
    if "labels" in tree and labels not in ("ids", "colors"):
        raise VocabularyError(f"labels is {labels!r}, expected 'ids' or 'colors'")
    return {
        "name": name,
        "classes": classes,
        "seen": splits[chosen] if chosen else None,
        "split": chosen,
        "ignore_label": ignored[0],
        "more_ignored": ignored[1:],
        "ignore_colors": tuple(checked_color(color, "ignore_color") for color in colors),
        "labels": labels,
    }


def _listed(value: object, what: str) -> tuple[Any, ...]:
    if isinstance(value, list) and not value:
        raise VocabularyError(f"{what} is an empty list, expected a value")
    return tuple(value) if isinstance(value, list) else (value,)


def split_names(text: str) -> list[str]:
    """Names of the splits in a vocabulary json that `parse_vocabulary_json` accepts."""
    return list(load_json(text).get("splits", {}))


def read_vocabulary_text(path: str | Path) -> str:
    """Read the text of a vocabulary json, which may be any.

    Raises:
        VocabularyError: the file is missing or no text.
    """
    try:
        return read_text_file(path)
    except FileNotFoundError as error:
        raise VocabularyError(f"{path}: no such vocabulary json; check the path") from error
    except NotUtf8Error as error:
        raise VocabularyError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        raise VocabularyError(f"{path}: {_unreadable(error)}") from error


def _unreadable(error: Exception) -> str:
    return f"not a readable json file ({one_line(error)}); mend it"


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = {key for key in keys if keys.count(key) > 1}
        raise VocabularyError(f"key {format_names(twice)} occurs twice in one object")
    return tree


def _check_keys(
    tree: object, known: Collection[str], required: Collection[str], where: str = ""
) -> None:
    """Check that a tree is an object with these keys; where it stands ends with a colon."""
    if not isinstance(tree, dict):
        raise VocabularyError(f"{where}found a {type(tree).__name__}, expected an object {{ }}")
    for key in tree:
        if key not in known:
            hint = did_you_mean(key, known) or f"; known are {format_names(known)}"
            raise VocabularyError(f"{where}unknown key {key!r}{hint}")
    missing = [key for key in required if key not in tree]
    if missing:
        raise VocabularyError(f"{where}{format_names(missing)} is missing; add it")


def _read_classes(trees: object) -> tuple[ClassEntry, ...]:
    if not isinstance(trees, list):
        raise VocabularyError(f"classes is {trees!r}, expected a list of objects")
    entries = []
    for index, tree in enumerate(trees):
        where = f"classes[{index}]: "
        _check_keys(tree, _CLASS_KEYS, ("name",), where)
        if not {"id", "ids"} & tree.keys():
            raise VocabularyError(f"{where}'id' is missing; add it")
        ids = _listed(tree.get("ids", tree.get("id")), f"{where}ids")
        entries.append(ClassEntry(**{"id": ids[0], **tree, "ids": ids}))
    return tuple(entries)


def _read_splits(trees: object, names: Sequence[str]) -> dict[str, tuple[bool, ...]]:
    if not isinstance(trees, dict):
        raise VocabularyError(f"splits is {trees!r}, expected an object of splits by name")
    return {split: _read_split(tree, names, f"split {split!r}") for split, tree in trees.items()}


def _read_split(tree: object, names: Sequence[str], where: str) -> tuple[bool, ...]:
    """K flags, True for seen."""
    _check_keys(tree, (*_SPLIT_KEYS, *_NOTES), (), f"{where}: ")
    parts = {
        part: _flags(tree[part], names, f"{where}: {part}") for part in _SPLIT_KEYS if part in tree
    }
    if not parts:
        raise VocabularyError(f"{where}: neither 'unseen' nor 'seen' is given; list one of them")
    if len(parts) == 2:
        both = 2, "both seen and unseen; keep it in one list"
        none = 0, "neither seen nor unseen; list it in one"
        for count, text in (both, none):
            flags = zip(names, *parts.values(), strict=True)
            found = [name for name, *listed in flags if sum(listed) == count]
            if found:
                raise VocabularyError(f"{where}: {format_names(found)} is {text}")
    if "seen" in parts:
        return tuple(parts["seen"])
    return tuple(not flag for flag in parts["unseen"])


def _flags(listed: object, names: Sequence[str], where: str) -> list[bool]:
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise VocabularyError(f"{where} is {listed!r}, expected a list of class names")
    refuse_duplicates(listed, f"{where}: names")
    return name_flags(listed, names, where)
