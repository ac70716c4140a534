"""Datasets, labels, augmentation and the zero-shot protocol.

Importing this package loads nothing heavy: a name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tagclip.data.augmentation import build_train_augmentations
    from tagclip.data.dataset_mapper import ZeroShotDatasetMapper
    from tagclip.data.datasets.register import register_folder_dataset, register_zero_shot_sem_seg
    from tagclip.data.image_io import read_image
    from tagclip.data.inference_input import build_test_augmentations
    from tagclip.data.label_io import check_label, read_indices, read_label
    from tagclip.data.protocol import Protocol

__all__ = [
    "Protocol",
    "ZeroShotDatasetMapper",
    "build_test_augmentations",
    "build_train_augmentations",
    "check_label",
    "read_image",
    "read_indices",
    "read_label",
    "register_folder_dataset",
    "register_zero_shot_sem_seg",
]

# Public name -> where it is defined.
_MODULES = {
    "Protocol": "protocol",
    "ZeroShotDatasetMapper": "dataset_mapper",
    "build_test_augmentations": "inference_input",
    "build_train_augmentations": "augmentation",
    "check_label": "label_io",
    "read_image": "image_io",
    "read_indices": "label_io",
    "read_label": "label_io",
    "register_folder_dataset": "datasets.register",
    "register_zero_shot_sem_seg": "datasets.register",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return globals().setdefault(name, value)
