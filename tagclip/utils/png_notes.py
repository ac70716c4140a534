"""What PNG files say of themselves in text chunks: what made them, and what label values mean."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from tagclip.utils.text import json_text

__all__ = ["png_with_notes", "read_notes"]

_NOTE_KEY, _WORDS_KEY = "TagCLIP", "TagCLIP classes"


def png_with_notes(
    image: Image.Image, note: str = "", words: Mapping[int, str] | None = None, **options: Any
) -> bytes:
    """Content of a PNG.

    Args:
        image: what it shows.
        note: kept inside, such as what it was made from; empty: none.
        words: kept inside, too: name of the class by label value; None: nothing is said of them.
        options: of Pillow's encoder.
    """
    info, file = PngInfo(), io.BytesIO()
    if note:
        info.add_text(_NOTE_KEY, note)
    if words is not None:
        info.add_text(_WORDS_KEY, json_text(words, ensure_ascii=False))
    image.save(file, "PNG", pnginfo=info, **options)
    return file.getvalue()


def read_notes(path: str | Path) -> tuple[str, dict[int, str] | None]:
    """``note`` and ``words`` of `png_with_notes`; "" and None of files that say nothing."""
    try:
        # Not by `Image.open`, which minds the size of an image that is not decoded.
        with PngImageFile(path) as image:
            note, words = (image.info.get(key, "") for key in (_NOTE_KEY, _WORDS_KEY))
    except (OSError, SyntaxError, ValueError):
        return "", None
    return str(note), _read_words(str(words))


def _read_words(text: str) -> dict[int, str] | None:
    try:
        return {int(value): str(name) for value, name in json.loads(text).items()}
    except (ValueError, AttributeError, RecursionError):
        return None
