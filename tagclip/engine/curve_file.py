"""The training curve, OUTPUT_DIR/metrics.json, as lines of valid json."""

from __future__ import annotations

from typing import Any

from detectron2.utils.events import EventWriter, JSONWriter

from tagclip.utils.text import json_text
from tagclip.utils.untrusted import load_json

__all__ = ["with_valid_json"]


def with_valid_json(writer: EventWriter) -> EventWriter:
    """Return the writer; detectron2's JSONWriter writes null for NaN from now on.

    An evaluation has no value where a class is in no image; JSONWriter (0.6) writes it as NaN.
    """
    if isinstance(writer, JSONWriter):
        writer._file_handle = _NullForNaN(writer._file_handle)
    return writer


class _NullForNaN:
    """A text file into which one line of json is written at a time."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(json_text(load_json(line)) + "\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
