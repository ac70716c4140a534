"""MiniBench: a generated benchmark of zero-shot transfer. Importing it registers its datasets."""

import os
from pathlib import Path

from tagclip import register_zero_shot_sem_seg
from tagclip.projects import ROOT
from tagclip.utils.files import expand_path

__all__ = ["VOCABULARY_JSON", "dataset_root"]

VOCABULARY_JSON = Path(__file__).with_name("minibench.json")
# Of the checkout, from wherever a command is run; an installed package has none.
_DATASETS = Path(ROOT) / "datasets"


def dataset_root() -> Path:
    """Folder of the generated data: ``$DETECTRON2_DATASETS/minibench``, else the checkout's."""
    default = _DATASETS if _DATASETS.is_dir() else "datasets"
    root = os.environ.get("DETECTRON2_DATASETS") or default
    return Path(expand_path(root)) / "minibench"


for _subset in ("train", "val", "test"):
    register_zero_shot_sem_seg(
        f"minibench_{_subset}",
        image_root=dataset_root() / "images" / _subset,
        sem_seg_root=dataset_root() / "labels" / _subset,
        vocabulary_json=VOCABULARY_JSON,
        image_ext="png",
        prepare_command="tagclip minibench data",
    )
