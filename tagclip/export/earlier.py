"""What an earlier export left in the folder of a new one.

A model.json describes one model: files of another one would lie beside it under the names of its
own.
"""

from __future__ import annotations

import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagclip.errors import ConfigError
from tagclip.modeling.clip.weights import file_sha256
from tagclip.utils.text import json_text, listed
from tagclip.utils.untrusted import load_json

__all__ = ["EarlierExport"]

# What differs between two formats of one model; int8 is told by its images.
_OF_FILES = ("files", "int8")


@dataclass(frozen=True)
class EarlierExport:
    """Files that the new export does not write.

    Attributes:
        recipe: content of the model.json there; {} if it is missing or damaged.
        names: the files, which are those that it describes.
    """

    recipe: dict[str, Any]
    names: tuple[str, ...]

    @classmethod
    def find(cls, folder: Path, known: Set[str], written: Set[str]) -> EarlierExport:
        """Look into the folder of a new export.

        Args:
            folder: it may be missing.
            known: names of all files that exports write, but for model.json.
            written: those of them that the new one writes.

        Raises:
            ConfigError: nobody knows what a file is: no model.json describes it.
        """
        names = tuple(n for n in sorted(known - written) if os.path.lexists(folder / n))
        recipe = _read(folder / "model.json")
        files = recipe.get("files", {})
        foreign = [n for n in names if not _is_described(folder / n, files)]
        if foreign:
            raise ConfigError(
                f"--output {folder}: found {listed(foreign, 6)}, which no model.json there "
                "describes and this export does not write, expected nothing of another model; "
                "move it, or name another folder"
            )
        return cls(recipe, names)

    def is_of(self, recipe: dict[str, Any]) -> bool:
        """Whether the files are of the model that a new model.json describes, as it describes it.

        Args:
            recipe: the new content.
        """
        old, new = (
            {key: value for key, value in content.items() if key not in _OF_FILES}
            for content in (self.recipe, load_json(json_text(recipe)))
        )
        return bool(self.names) and old == new

    def join(self, recipe: dict[str, Any]) -> None:
        """Describe the files in a new model.json, too: with those of the new export it `is_of`.

        Args:
            recipe: the new content.
        """
        recipe["files"] |= {name: self.recipe["files"][name] for name in self.names}
        # The new export may have made another.
        if "int8" in self.recipe:
            recipe.setdefault("int8", self.recipe["int8"])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = load_json(path.read_text(encoding="utf-8"))
        return content if isinstance(content["files"], dict) else {}
    except (OSError, ValueError, TypeError, LookupError):
        return {}


def _is_described(path: Path, files: dict[str, Any]) -> bool:
    entry = files.get(path.name)
    is_file = isinstance(entry, dict) and path.is_file()
    return is_file and file_sha256(path) == entry.get("sha256")
