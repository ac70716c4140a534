"""From an image to what the model takes at test time: one view, or several to average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import AugInput, Augmentation, AugmentationList
from fvcore.transforms.transform import HFlipTransform

from tagclip.data.augmentation import ResizeShortSide, build_test_augmentations
from tagclip.errors import DatasetError

__all__ = ["InferenceInput", "View", "check_bgr_array"]


@dataclass(frozen=True)
class View:
    """One way to show an image to the model.

    Attributes:
        augmentations: without randomness, applied in order.
        mirrored: flip left to right afterwards.
    """

    augmentations: tuple[Augmentation, ...]
    mirrored: bool = False

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """(H, W, 3) uint8 -> (3, h, w) uint8."""
        aug_input = AugInput(image)
        AugmentationList(list(self.augmentations))(aug_input)
        pixels = aug_input.image
        if self.mirrored:
            pixels = HFlipTransform(pixels.shape[1]).apply_image(pixels)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class InferenceInput:
    """Makes the input dict of one image."""

    def __init__(self, views: Sequence[View]) -> None:
        """Keep at least one view."""
        self.views = tuple(views)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> InferenceInput:
        """One view as ``INPUT`` says, or those of ``TEST.AUG`` if it is enabled.

        ``TEST.AUG.MIN_SIZES`` are short sides in pixels, ``MAX_SIZE`` bounds the long side (0: not
        at all), ``FLIP`` adds the mirror image of each.
        """
        augmentation = cfg.TEST.AUG
        if not augmentation.ENABLED:
            return cls([View(tuple(build_test_augmentations(cfg)))])
        rest = augmentation.MAX_SIZE, cfg.INPUT.RESIZE, cfg.INPUT.MAX_PIXELS
        resizes = [ResizeShortSide(size, *rest) for size in augmentation.MIN_SIZES]
        mirrored = (False, True) if augmentation.FLIP else (False,)
        return cls([View((resize,), flip) for resize in resizes for flip in mirrored])

    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """Prepare an image.

        Args:
            image: (H, W, 3) uint8, channels as in ``INPUT.FORMAT``.

        Returns:
            ``height`` and ``width`` of the image in pixels, ``image`` (3, h, w) uint8 of the
            first view, and with several views ``views``, a list of dicts with ``image`` and
            ``mirrored``.

        Raises:
            DatasetError: the resized image would have more than INPUT.MAX_PIXELS.
        """
        sample: dict[str, Any] = {"height": image.shape[0], "width": image.shape[1]}
        images = [view(image) for view in self.views]
        sample["image"] = images[0]
        if len(images) > 1:
            sample["views"] = [
                {"image": pixels, "mirrored": view.mirrored}
                for pixels, view in zip(images, self.views, strict=True)
            ]
        return sample


def check_bgr_array(image: object, name: str) -> None:
    """Refuse what is no (H, W, 3) uint8 array.

    Raises:
        DatasetError: says what was found instead, under this name.
    """
    expected = "expected a BGR array (H, W, 3) of uint8, a PIL image or a path"
    if not isinstance(image, np.ndarray):
        raise DatasetError(f"{name}: found a {type(image).__name__}, {expected}")
    shape, advice = image.shape, ""
    if not image.size:
        raise DatasetError(f"{name}: found an empty array {shape}, {expected}")
    if len(shape) == 3 and shape[0] == 3 and shape[2] != 3:
        advice = "; channels come last: image.transpose(1, 2, 0)"
    elif len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 4)):
        kind = "BGRA" if len(shape) == 3 and shape[2] == 4 else "GRAY"
        advice = f"; convert with cv2.cvtColor(image, cv2.COLOR_{kind}2BGR)"
    elif len(shape) == 4:
        advice = "; several images are a list"
    if len(shape) != 3 or shape[2] != 3:
        raise DatasetError(f"{name}: found an array {shape}, {expected}{advice}")
    if image.dtype != np.uint8:
        values = f"values {image.min()} to {image.max()}" if image.dtype.kind in "fiu" else "values"
        if image.dtype.kind == "f" and image.min() >= 0 and image.max() <= 1:
            advice = "; scale it: (image * 255).round().astype('uint8')"
        raise DatasetError(f"{name}: found {image.dtype} {values}, {expected}, 0 to 255{advice}")
