"""The items of a long json list, read one after the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from tagclip.utils.untrusted import load_json

__all__ = ["json_items"]

_CHUNK = 1 << 20
_BLANKS = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def json_items(file: TextIO) -> Iterator[Any]:
    """Iterate over a json list; a json that is none is its own only item.

    Memory holds one item and a chunk of the text.

    Raises:
        ValueError: it is no json.
        RecursionError: an item is nested too deeply.
    """
    text = _Text(file)
    if text.upcoming() != "[":
        yield load_json(text.rest())
        return
    text.skip()
    if text.upcoming() != "]":
        yield text.item()
        while text.upcoming() == ",":
            text.skip()
            yield text.item()
    if text.upcoming() != "]":
        raise ValueError(f"{text.upcoming()!r} where a list goes on or ends")
    text.skip()
    if text.upcoming():
        raise ValueError(f"{text.upcoming()!r} behind the list")


class _Text:
    """The part of a file that has been loaded and not yet read."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._place = 0

    def upcoming(self) -> str:
        """The next character that is no blank; "" at the end."""
        self._place = _BLANKS.match(self._text, self._place).end()
        while self._place == len(self._text) and self._load():
            self._place = _BLANKS.match(self._text, self._place).end()
        return self._text[self._place : self._place + 1]

    def skip(self) -> None:
        """Go on by one character."""
        self._place += 1

    def item(self) -> Any:
        """The json value that begins here."""
        self.upcoming()
        while True:
            try:
                value, self._place = _DECODER.raw_decode(self._text, self._place)
                return value
            except json.JSONDecodeError:
                if not self._load():
                    raise

    def rest(self) -> str:
        """All that has not been read."""
        return self._text[self._place :] + self._file.read()

    def _load(self) -> bool:
        """Load as much again as there is, so that long items are not decoded too often."""
        unread = self._text[self._place :]
        new = self._file.read(max(_CHUNK, len(unread)))
        self._text, self._place = unread + new, 0
        return bool(new)
