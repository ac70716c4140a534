"""What a demo found on images, as a COCO json and back.

The file is that of `tagclip.evaluation.coco_json`. A row of ``images`` says besides: ``file``, the
input; ``picture`` and ``labels``, what was written; ``classes``, the shares and mean scores of the
classes on the image, ``other``, the share of the rest, and ``made_with``, a fingerprint of all that
the result depends on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tagclip.evaluation.coco_json import format_coco

__all__ = ["format_entries", "parse_entries"]


def format_entries(entries: Iterable[dict[str, Any]]) -> str:
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
        image = {"id": number, "file_name": entry["file"], **entry}
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


def parse_entries(content: Any) -> list[dict[str, Any]]:
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
