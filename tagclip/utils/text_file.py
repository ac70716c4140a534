"""Text files that people write, in whatever editor: UTF-8, with or without a byte-order mark."""

from __future__ import annotations

from pathlib import Path

__all__ = ["NotUtf8Error", "read_text_file"]


class NotUtf8Error(ValueError):
    """A text file is of another encoding; the message says where, and what to do."""


def read_text_file(path: str | Path) -> str:
    r"""Content of a text file, without a byte-order mark, lines ending in ``\n``.

    Raises:
        NotUtf8Error: it is of another encoding. Which one cannot be told: none is guessed.
        OSError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        content, place = error.object, error.start
        line = content.count(b"\n", 0, place) + 1
        raise NotUtf8Error(
            f"line {line} holds the byte 0x{content[place]:02x}, which is not UTF-8; save the "
            "file as UTF-8"
        ) from error
