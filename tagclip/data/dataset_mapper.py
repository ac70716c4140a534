"""From a dataset's file names to what the model takes; the only place that reads labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.transforms import AugInput, Augmentation, AugmentationList

import tagclip
from tagclip.data.augmentation import RandomResize, build_train_augmentations
from tagclip.data.image_io import image_size, read_image
from tagclip.data.inference_input import InferenceInput, View
from tagclip.data.label_io import check_label, read_label
from tagclip.data.memory_order import planes
from tagclip.data.protocol import Protocol
from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.look_up import look_up

__all__ = ["ZeroShotDatasetMapper"]


class ZeroShotDatasetMapper:
    """Read, re-index, augment.

    In training, labels become indices of `target_vocabulary` before anything else looks at them:
    pixels of classes that it lacks or does not call seen become ignored. At test time labels are
    not read.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[Augmentation],
        image_format: str,
        source_vocabulary: Vocabulary,
        target_vocabulary: Vocabulary,
        novel_masks: bool,
        max_pixels: int,
        inference_input: InferenceInput | None = None,
        reduced_jpeg: bool = False,
    ):
        """
        Args:
            is_train: whether to read labels.
            augmentations: applied in order to image and, in training, re-indexed label.
            image_format: "RGB" or "BGR".
            source_vocabulary: full class list of the label files.
            target_vocabulary: class list of the result; in training with a known partition.
            novel_masks: add where pixels of unseen classes are, which breaks the protocol.
            max_pixels: images with more pixels are refused; 0 sets no limit.
            inference_input: makes the test input instead of `augmentations`.
            reduced_jpeg: decode a JPEG no larger than its resize, which has to come first, needs.
        """
        self.is_train = is_train
        self.augmentations = AugmentationList(list(augmentations))
        self.inference_input = inference_input or InferenceInput([View(tuple(augmentations))])
        self.image_format = image_format
        self.source_vocabulary = source_vocabulary
        self.target_vocabulary = target_vocabulary
        self.novel_masks = novel_masks
        self.max_pixels = max_pixels
        self.reduced_jpeg = reduced_jpeg
        if is_train:
            self._lut, self._novel_lut = _training_luts(source_vocabulary, target_vocabulary)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, is_train: bool = True, dataset_name: str | None = None
    ) -> dict[str, Any]:
        """Arguments for a training dataset (None: all of DATASETS.TRAIN) or a test dataset."""
        tagclip.register()
        protocol = Protocol(cfg)
        protocol.check()
        if not is_train and dataset_name is None:
            raise ValueError("a test mapper needs dataset_name: every dataset has its own classes")
        source = protocol.dataset(dataset_name) if dataset_name else protocol.full
        augmentations, inference_input = [], None
        if is_train:
            target = protocol.training
            augmentations = build_train_augmentations(cfg, target.ignore_index)
        else:
            target = protocol.asked(dataset_name)
            inference_input = InferenceInput.from_config(cfg)
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "source_vocabulary": source,
            "target_vocabulary": target,
            "novel_masks": is_train
            and (protocol.reads_novel_masks or protocol.monitors_pseudo_labels),
            "max_pixels": cfg.INPUT.MAX_PIXELS,
            "inference_input": inference_input,
            "reduced_jpeg": cfg.INPUT.REDUCED_JPEG,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read one sample.

        Args:
            dataset_dict: "file_name", in training "sem_seg_file_name", maybe "image_id".

        Returns:
            "image": (3, h, w) uint8 tensor, augmented, in `image_format`, 0..255;
            "height", "width": size of the upright image file in pixels;
            "file_name", and "image_id" if given; and
            in training "sem_seg": (h, w) uint8 or int32 tensor (`Vocabulary.target_dtype`) of
            indices of the target vocabulary and its `ignore_index`, and with `novel_masks`
            "novel_mask": (h, w) bool tensor, True on pixels of unseen classes;
            at test time "vocabulary": the target vocabulary, and with TEST.AUG "views"
            (`InferenceInput`).

        Raises:
            DatasetError: a file is missing or damaged, or the label fits neither the image nor
                the vocabulary.
        """
        sample = {
            key: dataset_dict[key] for key in ("file_name", "image_id") if key in dataset_dict
        }
        if self.is_train:
            return sample | self._training_sample(dataset_dict)
        sample["vocabulary"] = self.target_vocabulary
        path, size, least = dataset_dict["file_name"], None, None
        if self.reduced_jpeg:
            size = image_size(path)
            least = self.inference_input.least(*size)
        return sample | self.inference_input(self._read_image(path, least), size)

    def _training_sample(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        path, steps, size, least = dataset_dict["file_name"], self.augmentations.augs, None, None
        if self.reduced_jpeg and steps and isinstance(steps[0], RandomResize):
            size = image_size(path)
            resize = steps[0].for_size(*size)
            steps, least = [resize, *steps[1:]], (resize.new_height, resize.new_width)
        image = self._read_image(path, least)
        size = size or image.shape[:2]
        label = self._read_label(dataset_dict, size)
        aug_input = AugInput(image, sem_seg=look_up(self._lut, label))
        transforms = AugmentationList(steps)(aug_input)
        sample: dict[str, Any] = {
            "height": size[0],
            "width": size[1],
            "image": planes(aug_input.image),
            # `ascontiguousarray` keeps the negative stride of a flipped column, torch refuses it.
            "sem_seg": torch.from_numpy(aug_input.sem_seg.copy()),
        }
        if self.novel_masks:
            mask = transforms.apply_segmentation(look_up(self._novel_lut, label))
            sample["novel_mask"] = torch.from_numpy(mask.copy()) != 0
        return sample

    def _read_image(self, path: str, least: tuple[int, int] | None = None) -> np.ndarray:
        return read_image(path, self.image_format, self.max_pixels, least)

    def shows_unseen(self, dataset_dict: dict[str, Any]) -> bool:
        """Whether a training image has any pixel of a class without labels.

        Raises:
            DatasetError: the label file is missing or damaged, or holds unknown values.
        """
        return bool(look_up(self._novel_lut, self._read_label(dataset_dict)).any())

    def shows_seen(self, dataset_dict: dict[str, Any]) -> bool:
        """Whether a training image has any pixel with a label that training sees.

        Raises:
            DatasetError: the label file is missing or damaged, or holds unknown values.
        """
        labels = look_up(self._lut, self._read_label(dataset_dict))
        return bool((labels != self.target_vocabulary.ignore_index).any())

    def _read_label(
        self, dataset_dict: dict[str, Any], image_size: tuple[int, int] | None = None
    ) -> np.ndarray:
        path = dataset_dict.get("sem_seg_file_name")
        if path is None:
            raise DatasetError(
                f"{dataset_dict['file_name']}: no label file is registered for this image; train "
                "on a dataset with labels"
            )
        label = read_label(path, self.source_vocabulary)
        size, image = image_size or label.shape, dataset_dict["file_name"]
        check_label(label, path, self.source_vocabulary, size, image)
        return label


def _training_luts(source: Vocabulary, target: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Tables over raw label values: index in `target`, and (uint8) whether it is an unseen class.

    Values that mean nothing are ignored here: `check_label` has refused them before.
    """
    indices = source.label_lut(target)
    seen = np.zeros(max(target.ignore_index + 1, len(target)), dtype=bool)
    seen[: len(target)] = target.seen_mask
    has_label = (indices >= 0) & seen[indices]
    lut = np.where(has_label, indices, target.ignore_index).astype(target.target_dtype)
    is_class = np.zeros(len(lut), dtype=bool)
    is_class[list(source.by_value)] = True
    return lut, (is_class & ~has_label).astype(np.uint8)
