"""The page of a score: metrics, pictures, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tagclip.evaluation.content import headline_rows
from tagclip.scoring.conventions import CONVENTIONS
from tagclip.visualization.html_page import render

__all__ = ["report_page"]

_SIDES = ("mIoU", "mIoU-seen", "mIoU-unseen", "hIoU")
_PICTURES = {
    "Largest confusions": "confusions.png",
    "True and predicted classes": "confusion_map.png",
    "Worst images": "worst.png",
    "Best images": "best.png",
}


def report_page(
    content: Mapping[str, Any],
    notes: Sequence[str],
    pictures: Path,
) -> str:
    """Return the html of a score.

    Args:
        content: of ``metrics.json``.
        notes: sentences for the top.
        pictures: folder of `tagclip visualize results`; what is not there is left out.
    """
    columns = ["IoU", "ACC", *["boundary-IoU"] * ("boundary-IoU" in content["classes"][0])]
    parts = {True: "seen", False: "unseen", None: ""}
    sides = [s for s in _SIDES if any(s in found for found in content["conventions"].values())]
    return render(
        "score.html.j2",
        __package__,
        title=f"{content['run']['predictions']} on {content['dataset']}, "
        f"{content['images']} images, split {content['split'] or 'none'}",
        notes=[*notes, *filter(None, [content.get("note", "").rstrip(".")])],
        metrics=headline_rows(content),
        conventions=[
            (name, CONVENTIONS[name].source, *(_number(found.get(side)) for side in sides))
            for name, found in content["conventions"].items()
        ],
        sides=sides,
        pictures={
            name: (pictures / file).read_bytes()
            for name, file in _PICTURES.items()
            if (pictures / file).is_file()
        },
        classes=[
            (
                row["name"],
                parts[row["seen"]],
                *(_number(row[column]) for column in columns),
                f"{row['pixels']:,}",
            )
            for row in content["classes"]
        ],
        head=("class", "part", *columns, "pixels"),
    )


def _number(value: float | None) -> str:
    return "n/a" if value is None or value != value else f"{value:.2f}"
