"""The json of a demo: what is on each image, or on each frame of a video, as a COCO json.

The file is that of `tagclip.evaluation.coco_json`. A row of ``images`` says besides: ``file``, the
input, and ``frame`` of a video, which ``file_name`` joins; ``picture`` and ``labels``, what was
written; ``classes``, the shares and mean scores of the classes on the image with their ``id`` in
``labels``, ``other``, the share of the rest, ``ignore_label``, its value there, and ``made_with``,
a fingerprint of all that the result depends on. Where runs with other classes share the file, ids
of ``categories`` may be others than those in ``labels``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from detectron2.utils.logger import log_first_n

from tagclip.errors import ConfigError
from tagclip.evaluation.coco_json import format_coco
from tagclip.utils.files import write_atomic
from tagclip.utils.run_lock import RunLock
from tagclip.utils.untrusted import load_json

__all__ = ["JSON_PERIOD", "check_own_file", "own_json", "read_entries", "write_entries"]

# Images between two writings: so many are made again after a kill.
JSON_PERIOD = 100


def check_own_file(path: Path | None, used: Iterable[Path]) -> None:
    """Refuse a json in the place of another file of the run.

    Args:
        path: of the json; None: there is none.
        used: files that the run reads or writes.

    Raises:
        ConfigError: names the json.
    """
    if path is not None and os.path.realpath(path) in set(map(os.path.realpath, used)):
        raise ConfigError(
            f"--json {path}: would replace another file of this run; choose another name"
        )


def read_entries(path: Path | None) -> list[dict[str, Any]]:
    """Entries of an earlier run; none without a path or a file.

    Raises:
        ConfigError: there is a file that is none of ours.
    """
    if path is None or not path.is_file():
        return []
    try:
        return _parse(load_json(path.read_text("utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--json {path}: found another kind of file, expected that of an earlier run, or "
            "none; choose another name"
        ) from error


def own_json(path: Path | None) -> AbstractContextManager:
    """Keep another run, which would lose entries of this one, from a file; without a path nothing.

    Raises:
        ConfigError: on entering: another run is at work at it.
    """
    return RunLock(path.parent, "--json", path.name) if path else nullcontext()


def write_entries(
    path: Path | None, known: Sequence[dict[str, Any]], entries: Sequence[dict[str, Any]]
) -> None:
    """Write the entries of this run and, behind them, those of other files; without a path nothing.

    Another file of the same name may have been written to the same place: of its entries those go
    whose picture or labels are this run's now.

    Raises:
        ConfigError: the file cannot be written.
    """
    if path is None:
        return
    files = {entry["file"] for entry in entries}
    places = {place for entry in entries for place in _places(entry)}
    others = [entry for entry in known if entry["file"] not in files]
    kept = [entry for entry in others if places.isdisjoint(_places(entry))]
    gone = [entry["file"] for entry in others if not places.isdisjoint(_places(entry))]
    if gone:
        text = f"--json {path}: entries go whose files this run replaces, as those of {gone[0]}"
        log_first_n(logging.WARNING, f"{text}; give each folder an --output of its own")
    try:
        write_atomic(path, _format([*entries, *kept]))
    except OSError as error:
        raise ConfigError(
            f"--json {path}: cannot be written ({error.strerror}); what an earlier writing brought "
            "stays: free space or choose another place, then start again"
        ) from error


def _places(entry: dict[str, Any]) -> Iterator[str]:
    """What was written of an entry; of a frame the folder, which holds the frames of one video."""
    for key in ("picture", "labels"):
        if key in entry:
            yield os.path.dirname(entry[key]) if "frame" in entry else entry[key]


def _format(entries: Iterable[dict[str, Any]]) -> str:
    """Return the text of the file.

    Args:
        entries: rows of ``images`` with their ``annotations``, without ``image_id``, and
            ``categories``. Where these differ, as several runs asked for other classes, the ids of
            the first stay; the others' classes get new ones where an id is taken.
    """
    images, annotations, last = [], [], None
    categories: dict[str, dict[str, Any]] = {}
    ids: dict[int, int] = {}
    for number, entry in enumerate(entries, 1):
        frame = f"#{entry['frame']}" if "frame" in entry else ""
        image = {"id": number, "file_name": f"{entry['file']}{frame}", **entry}
        if (found := image.pop("categories")) is not last:
            ids, last = {row["id"]: _add(categories, row) for row in found}, found
        for row in image.pop("annotations"):
            place = {"image_id": number, "category_id": ids[row["category_id"]]}
            annotations.append({**row, **place})
        images.append(image)
    return format_coco("segments of a TagCLIP demo", images, annotations, categories.values())


def _add(categories: dict[str, dict[str, Any]], row: dict[str, Any]) -> int:
    """Id of a category, which is added if its name is new."""
    if row["name"] not in categories:
        taken = {other["id"] for other in categories.values()}
        number = max(taken) + 1 if row["id"] in taken else row["id"]
        categories[row["name"]] = row | {"id": number}
    return categories[row["name"]]["id"]


def _parse(content: Any) -> list[dict[str, Any]]:
    """Return the entries of a json, all with ``categories``.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: it is another kind of file.
    """
    categories = content["categories"]
    images = {
        image.pop("id"): {**image, "annotations": [], "categories": categories}
        for image in map(dict, content["images"])
        if image["file"]
    }
    for row in content["annotations"]:
        images[row["image_id"]]["annotations"].append(
            {key: value for key, value in row.items() if key not in ("id", "image_id")}
        )
    return list(images.values())
