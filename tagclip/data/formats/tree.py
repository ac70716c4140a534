"""Json files of other tools, with one line for what is not as it should be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tagclip.errors import DatasetError
from tagclip.utils.text import one_line, shortened
from tagclip.utils.untrusted import load_json

__all__ = ["located", "need", "read_json"]

_KINDS = {dict: "an object { }", list: "a list", str: "a text", int: "an integer"}


def read_json(path: Path) -> dict[str, Any]:
    """Read a json file that holds an object.

    Raises:
        DatasetError: the file is missing, no json, or holds something else.
    """
    try:
        tree = load_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        reason = one_line(error)
        raise DatasetError(
            f"{path}: not a readable json file ({reason}); export it again"
        ) from error
    if not isinstance(tree, dict):
        raise DatasetError(
            f"{path}: found a {type(tree).__name__}, expected {_KINDS[dict]}; is it another export?"
        )
    return tree


def need(tree: object, key: str, kind: type, where: str) -> Any:
    """Value of a key.

    Args:
        tree: should be an object that has it.
        kind: dict, list, str or int.
        where: begins the message.

    Raises:
        DatasetError: there is no such value.
    """
    value = tree.get(key) if isinstance(tree, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        found = shortened(repr(value), 60)
        raise DatasetError(f"{where}: {key} is {found}, expected {_KINDS[kind]}; export it again")
    return value


@contextmanager
def located(where: str) -> Iterator[None]:
    """Let the messages of `DatasetError` begin with the place."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{where}: {error}") from error
