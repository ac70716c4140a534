"""The tool, and masks for it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from helpers.convert_tool import COLORS, TABLE, ids
from helpers.tiny_run import load_tool
from PIL import Image


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    return load_tool(repository / "tools" / "convert_labels.py")


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Three masks, in two folders."""
    for number in range(3):
        path = tmp_path / "masks" / ("a", "b")[number % 2] / f"{number}.PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLORS[ids(number)]).save(path)
    (tmp_path / "masks" / "notes.txt").write_text("no mask")
    (tmp_path / "classes.csv").write_text(TABLE)
    return tmp_path / "masks"
