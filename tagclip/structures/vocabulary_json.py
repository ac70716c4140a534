"""The vocabulary json: a hand-editable file with classes and the splits by class name.

Format 1::

    {"format": 1, "name": "pets", "ignore_label": 255, "source_ids": "where the ids come from",
     "classes": [{"id": 0, "name": "cat", "prompts": ["cat", "kitten"], "color": [128, 0, 0]},
                 {"id": 1, "name": "dog"}],
     "default_split": "no_dog",
     "splits": {"no_dog": {"unseen": ["dog"]}}}

A split names its unseen classes, its seen classes, or both (then every class once).
Only "format", "name" and "classes" are required. "description" and "source" are for readers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagclip.errors import VocabularyError
from tagclip.structures.vocabulary_class import ClassEntry, format_names, name_key
from tagclip.utils.text import did_you_mean, one_line
from tagclip.utils.untrusted import load_json

__all__ = ["VocabularyFile", "read_vocabulary_json"]

_FORMAT = 1
_NOTES = ("description", "source")
_FILE_KEYS = ("format", "name", "ignore_label", "source_ids", "classes", "default_split", "splits")
_CLASS_KEYS = ("id", "name", "prompts", "color")
_SPLIT_KEYS = ("seen", "unseen")


@dataclass(frozen=True)
class VocabularyFile:
    """Content of a vocabulary json.

    Attributes:
        path: the file.
        name: name of the vocabulary.
        classes: its K classes.
        ignore_label: value of unlabelled pixels in the label files.
        splits: for every split, K flags, True for seen classes.
        default_split: name of a split, or "".
    """

    path: Path
    name: str
    classes: tuple[ClassEntry, ...]
    ignore_label: int
    splits: Mapping[str, tuple[bool, ...]]
    default_split: str

    def choose_split(self, split: str = "") -> tuple[str, tuple[bool, ...] | None]:
        """Name and flags of a split; "" is the default split, or ("", None) without one.

        Raises:
            VocabularyError: there is no such split.
        """
        split = split or self.default_split
        if not split:
            return "", None
        if split not in self.splits:
            raise VocabularyError(
                f"{self.path}: no split {split!r}; it has {format_names(self.splits) or 'none'}"
            )
        return split, self.splits[split]


def read_vocabulary_json(path: str | Path) -> VocabularyFile:
    """Read and check a vocabulary json.

    Raises:
        VocabularyError: the file is missing, no json, of another format, or inconsistent; the
            message names the file and the place in it.
    """
    path = Path(path)
    tree = _load(path)
    _check_keys(tree, (*_FILE_KEYS, *_NOTES), ("format", "name", "classes"), f"{path}")
    if tree["format"] != _FORMAT or isinstance(tree["format"], bool):
        raise VocabularyError(f"{path}: format is {tree['format']!r}, expected {_FORMAT}")
    name = tree["name"]
    if not isinstance(name, str) or not name.strip():
        raise VocabularyError(f"{path}: name is {name!r}, expected a text")
    try:
        classes = _read_classes(tree["classes"])
        splits = _read_splits(tree.get("splits", {}), [entry.name for entry in classes])
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from error
    default = tree.get("default_split", "")
    file = VocabularyFile(path, name, classes, tree.get("ignore_label", 255), splits, default)
    if not isinstance(default, str):
        raise VocabularyError(f"{path}: default_split is {default!r}, expected a name")
    file.choose_split()
    return file


def _load(path: Path) -> dict[str, Any]:
    try:
        tree = load_json(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_pairs)
    except FileNotFoundError as error:
        raise VocabularyError(f"{path}: no such vocabulary json; check the path") from error
    except (OSError, ValueError, VocabularyError) as error:
        raise VocabularyError(
            f"{path}: not a readable json file ({one_line(error)}); mend it"
        ) from error
    if not isinstance(tree, dict):
        raise VocabularyError(f"{path}: found a {type(tree).__name__}, expected an object {{ }}")
    return tree


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = {key for key in keys if keys.count(key) > 1}
        raise VocabularyError(f"key {format_names(twice)} occurs twice in one object")
    return tree


def _check_keys(
    tree: object, known: Collection[str], required: Collection[str], where: str
) -> None:
    if not isinstance(tree, dict):
        raise VocabularyError(f"{where}: found {tree!r}, expected an object {{ }}")
    for key in tree:
        if key not in known:
            hint = did_you_mean(key, known) or f"; known are {format_names(known)}"
            raise VocabularyError(f"{where}: unknown key {key!r}{hint}")
    missing = [key for key in required if key not in tree]
    if missing:
        raise VocabularyError(f"{where}: {format_names(missing)} is missing; add it")


def _read_classes(trees: object) -> tuple[ClassEntry, ...]:
    if not isinstance(trees, list):
        raise VocabularyError(f"classes is {trees!r}, expected a list of objects")
    entries = []
    for index, tree in enumerate(trees):
        _check_keys(tree, _CLASS_KEYS, ("id", "name"), f"classes[{index}]")
        entries.append(ClassEntry(**tree))
    return tuple(entries)


def _read_splits(trees: object, names: Sequence[str]) -> dict[str, tuple[bool, ...]]:
    if not isinstance(trees, dict):
        raise VocabularyError(f"splits is {trees!r}, expected an object of splits by name")
    return {split: _read_split(tree, names, f"split {split!r}") for split, tree in trees.items()}


def _read_split(tree: object, names: Sequence[str], where: str) -> tuple[bool, ...]:
    """K flags, True for seen."""
    _check_keys(tree, (*_SPLIT_KEYS, *_NOTES), (), where)
    parts = [part for part in _SPLIT_KEYS if part in tree]
    lists = {part: _name_keys(tree[part], names, f"{where}: {part}") for part in parts}
    if not lists:
        raise VocabularyError(f"{where}: neither 'unseen' nor 'seen' is given; list one of them")
    keys = [name_key(name) for name in names]
    if len(lists) == 2:
        counts = [sum(key in part for part in lists.values()) for key in keys]
        both = 2, "both seen and unseen; keep it in one list"
        none = 0, "neither seen nor unseen; list it in one"
        for count, text in (both, none):
            found = [name for name, times in zip(names, counts, strict=True) if times == count]
            if found:
                raise VocabularyError(f"{where}: {format_names(found)} is {text}")
    if "seen" in lists:
        return tuple(key in lists["seen"] for key in keys)
    return tuple(key not in lists["unseen"] for key in keys)


def _name_keys(listed: object, names: Sequence[str], where: str) -> set[str]:
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise VocabularyError(f"{where} is {listed!r}, expected a list of class names")
    known = {name_key(name): name for name in names}
    unknown = [name for name in listed if name_key(name) not in known]
    if unknown:
        hint = did_you_mean(name_key(unknown[0]), names) or "; names are compared with classes"
        raise VocabularyError(f"{where} names {format_names(unknown)}, no class{hint}")
    keys = [name_key(name) for name in listed]
    if len(set(keys)) < len(keys):
        twice = [n for n, k in zip(listed, keys, strict=True) if keys.count(k) > 1]
        raise VocabularyError(f"{where} names {format_names(twice)} more than once; keep one")
    return set(keys)
