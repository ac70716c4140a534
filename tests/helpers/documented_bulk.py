"""The examples of docs/bulk.md, run on a folder that is written for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.paths import REPOSITORY
from helpers.segment_folders import label_outputs, write_segment_folder
from helpers.shell_blocks import code_blocks
from PIL import Image

from tagclip.evaluation.segment_rows import failed_row, prediction_row
from tagclip.structures.vocabulary import Vocabulary

__all__ = ["FOUND", "LABELS", "WORDS", "run_example", "write_documented_run"]

WORDS = Vocabulary.from_names(["red ball", "green board", "sand"])
# More than 5 % of the second class on the images 0, 2 and 4; 5 was not read.
LABELS = {
    f"{number:06}.png": np.where(np.arange(200).reshape(10, 20) < 20 * share, 1, number % 2 - 1)
    for number, share in enumerate((2, 0.5, 5, 0, 1.5))
}
FOUND = ["000002.png", "000000.png", "000004.png"]


def write_documented_run(root: Path, file_format: str = "parquet") -> None:
    """Write ``out`` and ``photos`` below a folder."""
    rows = [
        prediction_row(image_id, label_outputs(labels, labels / 1.0), WORDS, labels=True)
        for image_id, labels in LABELS.items()
    ]
    rows.append(failed_row("000005.png", "broken", labels=True))
    write_segment_folder(root / "out", [rows[:3], rows[3:]], WORDS, file_format, labels=True)
    (root / "photos").mkdir()
    for image_id, labels in LABELS.items():
        Image.new("RGB", labels.shape[::-1]).save(root / "photos" / image_id)


def run_example(
    part: str, root: Path, monkeypatch: pytest.MonkeyPatch, end: str = ""
) -> dict[str, Any]:
    """Run the one Python block of the page that holds a text, up to another text; return its
    names."""
    page = (REPOSITORY / "docs/bulk.md").read_text(encoding="utf-8")
    (block,) = [b for b in code_blocks(page) if b.kind == "python" and part in b.text]
    monkeypatch.chdir(root)
    names: dict[str, Any] = {}
    text = block.text[: block.text.index(end)] if end else block.text
    exec(compile(text, f"docs/bulk.md:{block.line}", "exec"), names)
    return names
