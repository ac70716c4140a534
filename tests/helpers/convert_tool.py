"""What the tests of tagclip labels convert share besides fixtures."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np

COLORS = np.array([[0, 0, 0], [194, 178, 128], [220, 20, 60]], np.uint8)
TABLE = "name,r,g,b\nsand,194,178,128\nred thing,220,20,60\nignore,0,0,0\n"
# Label values of the three colours by that table.
VALUES = np.array([255, 0, 1])


def ids(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, (20, 30))


def run(tool: ModuleType, *words: object) -> None:
    tool.main(tool.parse_args([*map(str, words), "--workers", "0"]))


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every file."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
