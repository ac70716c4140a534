"""Images with predictions that are hard to write: holes, single pixels, noise, nothing at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tagclip import Vocabulary
from tagclip.data.formats.labelled_image import LabelledImage
from tagclip.structures.vocabulary import ClassEntry

__all__ = ["NAMES", "label_maps", "labelled_images", "odd_vocabulary"]

# Neither in the order of their ids nor plain ASCII; xml escapes some characters.
NAMES = ["cat", 'a "b" & <c>', "Gürteltier, groß", "sky"]
_IDS = [7, 0, 300, 2]
_FILES = ["a.png", "street/b c.png", "street/d.png", "ü.png", "e.png"]


def odd_vocabulary() -> Vocabulary:
    """Four classes."""
    entries = [ClassEntry(i, name) for i, name in zip(_IDS, NAMES, strict=True)]
    return Vocabulary("odd", tuple(entries))


def label_maps() -> list[np.ndarray]:
    """(H, W) int32 indices, -1 for none."""
    rng = np.random.default_rng(0)
    rings = np.full((21, 30), 0, np.int32)
    rings[3:18, 4:20], rings[6:15, 7:17], rings[9:12, 9:11] = 1, -1, 1
    rings[0, 0], rings[20, 29], rings[5, 25], rings[7, 25] = -1, 2, 3, 3
    noise = rng.integers(-1, 4, (13, 17), dtype=np.int32)
    # Squares that touch at corners, and bars of one pixel.
    board = (np.indices((8, 9)).sum(axis=0) % 2).astype(np.int32) * 3
    board[4] = 1
    blobs = rng.integers(-1, 4, (5, 7), dtype=np.int32).repeat(9, axis=0).repeat(11, axis=1)
    return [rings, noise, board, blobs, np.full((6, 5), -1, np.int32)]


def labelled_images(folder: Path) -> list[LabelledImage]:
    """Write gray images of these sizes below a folder."""
    found = []
    for file, labels in zip(_FILES, label_maps(), strict=True):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*labels.shape, 3), 99, np.uint8)).save(path)
        found.append(LabelledImage(file, file.removesuffix(".png"), path, labels))
    return found
