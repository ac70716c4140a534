"""What exports of annotation tools have in common: sizes, names, damage, what is left out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from os.path import isfile, join
from pathlib import Path
from typing import Any

import numpy as np

from tagclip.data.formats.json_items import json_items
from tagclip.errors import DatasetError
from tagclip.utils.text import error_text, shortened
from tagclip.utils.text_file import NotUtf8Error, read_text_file
from tagclip.utils.untrusted import load_json

__all__ = [
    "checked_size",
    "find_image",
    "flag",
    "located",
    "located_mask",
    "need",
    "read_items",
    "read_json",
    "report_left_out",
]

_KINDS = {dict: "an object { }", list: "a list", str: "a text", int: "an integer"}
_LOGGER = logging.getLogger(__name__)
# Of an image; Pillow opens none that is so large.
_MOST_PIXELS = 1 << 28
# What a damaged file can raise while its parts are looked up and converted.
_DAMAGE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError)


def read_json(path: str | Path, tool: str) -> Any:
    """The content of a json.

    Args:
        path: the file.
        tool: who writes it, for the message.

    Raises:
        DatasetError: it is missing, or no json.
    """
    with _json_of(path, tool):
        return load_json(read_text_file(path))


def read_items(path: str | Path, tool: str) -> Iterator[Any]:
    """The items of a json list one after the other, so that memory holds one; or the json itself
    if it is no list.

    Args:
        path: the file.
        tool: who writes it, for the message.

    Raises:
        DatasetError: it is missing, or no json.
    """
    with _json_of(path, tool), open(path, encoding="utf-8-sig") as file:
        yield from json_items(file)


@contextmanager
def _json_of(path: str | Path, tool: str) -> Iterator[None]:
    try:
        yield
    except NotUtf8Error as error:
        raise DatasetError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(
            f"{path}: found {error_text(error)}, expected the json that {tool} exports; check the "
            "path, unpack a zip, or export it again"
        ) from error


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


def flag(tree: Mapping[str, Any], key: str, where: str, default: bool = False) -> bool:
    """Truth value of a key, or the default without the key, or where it is null.

    Args:
        tree: an object.
        key: what it may have.
        where: begins the message.
        default: what a missing key means.

    Raises:
        DatasetError: it is anything but 0, 1, true and false.
    """
    value = tree.get(key)
    if value is None:
        return default
    # The text "0" would be true.
    if not isinstance(value, (int, float)) or value not in (0, 1):
        found = shortened(repr(value), 60)
        raise DatasetError(
            f"{where}: {key} is {found}, expected 0, 1, true or false; export it again"
        )
    return bool(value)


def find_image(names: Sequence[str], images: str | Path | None) -> str:
    """The path of an image relative to the folder of the images.

    Args:
        names: what it may be called there, the likeliest first.
        images: that folder; None: the first name is taken.

    Raises:
        DatasetError: a name leads out of the folder. The message lacks the file.
    """
    names = [name.replace("\\", "/").lstrip("/") for name in names]
    if not names[0] or any(".." in name.split("/") for name in names):
        raise DatasetError(f"found the image name {names[0]!r}, expected one below a folder")
    if images is None:
        return names[0]
    return next((name for name in names if isfile(join(images, name))), names[0])


def checked_size(height: object, width: object) -> tuple[int, int]:
    """The size of an image as a file says it.

    Raises:
        DatasetError: it says none, or more pixels than an image may have. The message lacks the
            file.
    """
    try:
        size = int(height), int(width)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        size = (0, 0)
    if min(size) < 1 or size[0] * size[1] > _MOST_PIXELS:
        raise DatasetError(
            f"found the image size {width!r} x {height!r}, expected width and height in pixels, "
            f"at most {_MOST_PIXELS} in all; export the annotations again"
        )
    return size


@contextmanager
def located(path: str | Path, part: object = "") -> Iterator[None]:
    """Put a file, and a part of it, before the messages of what is wrong in it.

    Args:
        path: the file.
        part: such as the image whose annotations are read.

    Raises:
        DatasetError: for every error of the block that damaged content raises.
    """
    where = f"{path}: {part}" if part else str(path)
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{where}: {error.args[0]}") from error
    except NotUtf8Error as error:
        raise DatasetError(f"{where}: {error}") from error
    except _DAMAGE as error:
        raise DatasetError(
            f"{where}: found damaged annotations ({error_text(error)}), expected an export as the "
            "tool writes it; export it again"
        ) from error


def located_mask(path: str | Path, mask: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    """A mask whose errors, which come when it is made, are those of a file (see `located`)."""
    return partial(_make, path, mask)


def _make(path: str | Path, mask: Callable[[], np.ndarray]) -> np.ndarray:
    with located(path):
        return mask()


def report_left_out(
    path: str | Path, counts: Counter[str], without_area_or_class: Container[str]
) -> None:
    """Log how many annotations of which kinds have been left out, if any.

    Args:
        path: the file.
        counts: annotations by kind.
        without_area_or_class: kinds of which nothing could be painted; others are not read.
    """
    nothing = {kind: n for kind, n in counts.items() if kind in without_area_or_class}
    unread = {kind: n for kind, n in counts.items() if kind not in without_area_or_class}
    if nothing:
        found = _listed(nothing)
        _LOGGER.warning("%s: left out, for it covers no pixels or has no class: %s", path, found)
    if unread:
        _LOGGER.warning(
            "%s: left out, for this kind is not read: %s; export it as polygons or masks",
            path,
            _listed(unread),
        )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
