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
from tagclip.data.choices import require_choice
from tagclip.errors import ConfigError

__all__ = ["InferenceInput", "View"]


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

        Raises:
            ConfigError: a value does not make sense.
        """
        augmentation = cfg.TEST.AUG
        if not augmentation.ENABLED:
            return cls([View(tuple(build_test_augmentations(cfg)))])
        sizes = tuple(augmentation.MIN_SIZES)
        if not sizes or min(sizes) < 1:
            raise ConfigError(f"TEST.AUG.MIN_SIZES is {sizes}, expected pixels above 0")
        require_choice(cfg.INPUT.RESIZE, "INPUT.RESIZE", ("cv2", "pil"))
        resizes = [ResizeShortSide(size, augmentation.MAX_SIZE, cfg.INPUT.RESIZE) for size in sizes]
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
