"""Small datasets on disk for the tests of the data side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from tagclip.config.loading import load_config


def vocabulary_tree(names: Sequence[str], unseen: Sequence[str] = (), **extra: Any) -> dict:
    """A vocabulary json with ids 0..K-1 and the default split "zs"."""
    tree = {
        "format": 1,
        "name": "toy",
        "classes": [{"id": index, "name": name} for index, name in enumerate(names)],
        "default_split": "zs",
        "splits": {"zs": {"unseen": list(unseen)}},
    }
    return {key: value for key, value in {**tree, **extra}.items() if value is not None}


def write_json(path: Path, tree: Any) -> Path:
    """Write a json file and return its path."""
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def write_sample(folder: Path, stem: str, image: np.ndarray, label: np.ndarray) -> dict[str, str]:
    """Write images/<stem>.png and labels/<stem>.png; return the dataset dict."""
    paths = {}
    for kind, array in (("images", image), ("labels", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        paths[kind] = str(folder / kind / f"{stem}.png")
        Image.fromarray(array).save(paths[kind])
    return {
        "file_name": paths["images"],
        "sem_seg_file_name": paths["labels"],
        "image_id": stem,
    }


def toy_config(*opts: Any) -> CfgNode:
    """Small crops, every training augmentation on; opts are keys and values."""
    base = [
        "INPUT.MIN_SIZE_TRAIN", (32,),
        "INPUT.MAX_SIZE_TRAIN", 128,
        "INPUT.MIN_SIZE_TEST", 32,
        "INPUT.MAX_SIZE_TEST", 0,
        "INPUT.CROP.ENABLED", True,
        "INPUT.CROP.TYPE", "absolute",
        "INPUT.CROP.SIZE", (24, 24),
    ]  # fmt: skip
    return load_config(opts=[*base, *opts])


def forget(*names: str) -> None:
    """Undo registrations."""
    for name in names:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
