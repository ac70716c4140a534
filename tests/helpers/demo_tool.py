"""What the tests of tagclip segment share besides fixtures: the words they ask for, and images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers.pictures import picture
from PIL import Image

WORDS = "cat, zebra,  sky"


def save(path: Path, bgr: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture() if bgr is None else bgr)[:, :, ::-1]).save(path)
    return path
