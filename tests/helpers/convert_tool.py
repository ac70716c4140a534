"""What the tests of tagclip labels convert share besides fixtures."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

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


def coco(tmp_path: Path, **changes: Any) -> Path:
    """An image with a crowd, a cat and a dog on it, and one without annotations."""
    cat, crowd = np.zeros((2, 10, 12), np.uint8)
    cat[2:8, 2:8] = crowd[:, 9:] = 1
    rle = coco_mask.encode(np.asfortranarray(crowd))
    rows = [(70, 0, [[3, 3, 6, 3, 6, 6, 3, 6]]), (7, 0, [[2, 2, 8, 2, 8, 8, 2, 8]])]
    rows.append((7, 1, {"size": [10, 12], "counts": rle["counts"].decode()}))
    tree = {
        "images": [
            {"id": 1, "file_name": "s/a.jpg", "height": 10, "width": 12},
            {"id": 2, "file_name": "b.jpg", "height": 10, "width": 12},
        ],
        "categories": [{"id": 70, "name": "dog"}, {"id": 7, "name": "Cat"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": c, "iscrowd": i, "segmentation": s}
            for n, (c, i, s) in enumerate(rows)
        ],
    }
    for row in tree["images"]:
        path = tmp_path / "images" / row["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10)).save(path)
    (tmp_path / "coco.json").write_text(json.dumps({**tree, **changes}))
    return tmp_path / "coco.json"
