"""The json of a demo: what is on each image, or on each frame of a video."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tagclip.errors import ConfigError
from tagclip.utils.files import write_atomic
from tagclip.utils.untrusted import load_json

__all__ = ["JSON_PERIOD", "read_entries", "write_entries"]

# Images between two writings: so many are made again after a kill.
JSON_PERIOD = 100


def read_entries(path: Path | None) -> list[dict[str, Any]]:
    """Entries of an earlier run; none without a path or a file.

    Raises:
        ConfigError: there is a file that is none of ours.
    """
    if path is None or not path.is_file():
        return []
    try:
        entries = load_json(path.read_text("utf-8"))["images"]
        # Each says what it is about.
        return [{"file": entry["file"], **entry} for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--json {path}: found another kind of file, expected that of an earlier run, or "
            "none; choose another name"
        ) from error


def write_entries(
    path: Path | None, known: Sequence[dict[str, Any]], entries: Sequence[dict[str, Any]]
) -> None:
    """Write the entries of this run and, behind them, those of other files; without a path nothing.

    Raises:
        ConfigError: the file cannot be written.
    """
    if path is None:
        return
    files = {entry["file"] for entry in entries}
    content = {"images": [*entries, *(entry for entry in known if entry["file"] not in files)]}
    try:
        write_atomic(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written ({error.strerror})") from error
