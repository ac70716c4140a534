"""Datasets, labels, augmentation and the zero-shot protocol."""

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
