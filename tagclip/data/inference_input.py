"""From an image to what the model takes at test time: resized, as one view or several to average.

Sizes follow the released pipeline.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import AugInput, Augmentation, AugmentationList
from detectron2.utils.logger import log_first_n
from fvcore.transforms.transform import HFlipTransform, Transform
from PIL import Image

from tagclip.data.memory_order import planes
from tagclip.errors import ConfigError, DatasetError

__all__ = [
    "InferenceInput",
    "ResizeShortSide",
    "ResizeTransform",
    "View",
    "build_test_augmentations",
    "bgr_array",
    "fit_size",
    "interpolation",
]

_CV2 = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def fit_size(height: int, width: int, short: int, long: int = 0) -> tuple[int, int]:
    """Size of an image that is resized, keeping its ratio, into (long, short).

    Scale s = min(long / max(height, width), short / min(height, width)), new sides
    int(side * s + 0.5), at least 1 (mmcv's rule; docs/method.md, section 7).

    Args:
        height, width: size in pixels.
        short: bound of the short side in pixels.
        long: bound of the long side in pixels; 0 sets none.

    Returns:
        (height, width) in pixels.
    """
    scale = short / min(height, width)
    if long:
        scale = min(scale, long / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


class ResizeTransform(Transform):
    """Resize of images, nearest-neighbour resize of labels.

    "cv2" takes no mean over the pixels that a smaller image leaves out; "pil" does.
    Both keep every integer label exact.
    """

    def __init__(
        self,
        height: int,
        width: int,
        new_height: int,
        new_width: int,
        library: str,
        interpolation: str = "bilinear",
    ) -> None:
        """Keep what is resized to what, by "cv2" or "pil", "bilinear" or "bicubic"."""
        super().__init__()
        self.height, self.width = height, width
        self.new_height, self.new_width = new_height, new_width
        self.library, self.interpolation = library, interpolation

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 to (new H, new W, 3) uint8."""
        return self._resize(img, nearest=False)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(H, W) uint8 or int32 to the new size."""
        return self._resize(segmentation, nearest=True)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) points (x, y) in pixels, scaled."""
        factors = (self.new_width / self.width, self.new_height / self.height)
        return coords * np.array(factors, dtype=coords.dtype)

    def _resize(self, array: np.ndarray, nearest: bool) -> np.ndarray:
        if array.shape[:2] == (self.new_height, self.new_width):
            return array
        size = self.new_width, self.new_height
        if self.library == "cv2":
            mode = cv2.INTER_NEAREST if nearest else _CV2[self.interpolation]
            return cv2.resize(array, size, interpolation=mode)
        mode = Image.Resampling["NEAREST" if nearest else self.interpolation.upper()]
        return np.array(Image.fromarray(array).resize(size, mode))


class ResizeShortSide(Augmentation):
    """Resize the short side to exactly `short` pixels unless the long side passes `long` (> 0).

    A thin strip that would become larger than `max_pixels` (> 0) is not enlarged, which is logged.
    """

    def __init__(
        self,
        short: int,
        long: int,
        library: str,
        max_pixels: int = 0,
        interpolation: str = "bilinear",
    ) -> None:
        """Keep the bounds; ``library`` and ``interpolation`` are those of `ResizeTransform`."""
        super().__init__()
        self.short, self.long, self.library = short, long, library
        self.max_pixels, self.interpolation = max_pixels, interpolation

    def get_transform(self, image: np.ndarray) -> ResizeTransform:
        """For an (H, W, 3) image, see `for_size`."""
        return self.for_size(*image.shape[:2])

    def for_size(self, height: int, width: int) -> ResizeTransform:
        """For an image of this size.

        Raises:
            DatasetError: it is larger than `max_pixels` even so.
        """
        size = fit_size(height, width, self.short, self.long)
        if 0 < self.max_pixels < size[0] * size[1]:
            size = self._not_enlarged(height, width, size)
        return ResizeTransform(height, width, *size, self.library, self.interpolation)

    def _not_enlarged(self, height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
        kept = min(size, (height, width))
        is_too_large = kept[0] * kept[1] > self.max_pixels
        text = (
            f"image of {width}x{height} pixels: a short side of {self.short} would make it "
            f"{size[1]}x{size[0]}, INPUT.MAX_PIXELS allows {self.max_pixels}"
        )
        advice = "INPUT.MAX_SIZE_TEST 4096 (TEST.AUG.MAX_SIZE)"
        if is_too_large:
            raise DatasetError(f"{text}; bound its long side with {advice}")
        log_first_n(
            logging.WARNING,
            f"{text}; it and others like it are not enlarged: choose their long side with {advice}",
            name=__name__,
        )
        return kept


def interpolation(cfg: CfgNode) -> str:
    """Return ``INPUT.INTERPOLATION``, "bilinear" or "bicubic".

    Raises:
        ConfigError: it is that of CLIP's weights, which no resize knows.
    """
    if cfg.INPUT.INTERPOLATION == "weights":
        raise ConfigError(
            "INPUT.INTERPOLATION: found 'weights' where images are resized, expected 'bilinear' or "
            "'bicubic'; call tagclip.modeling.clip.resolve_pixels(cfg) first"
        )
    return cfg.INPUT.INTERPOLATION


def build_test_augmentations(cfg: CfgNode) -> list[Augmentation]:
    """Resize of the short side to `INPUT.MIN_SIZE_TEST` (0: none).

    `INPUT.MAX_SIZE_TEST` bounds the long side (0: not at all, as the released pipeline).
    """
    inputs = cfg.INPUT
    if inputs.MIN_SIZE_TEST == 0:
        return []
    rest = inputs.MAX_SIZE_TEST, inputs.RESIZE, inputs.MAX_PIXELS, interpolation(cfg)
    return [ResizeShortSide(inputs.MIN_SIZE_TEST, *rest)]


@dataclass(frozen=True)
class View:
    """One way to show an image to the model.

    Attributes:
        augmentations: without randomness, applied in order.
        mirrored: flip left to right afterwards.
    """

    augmentations: tuple[Augmentation, ...]
    mirrored: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        """What an image of this size is resized to before anything else: (height, width)."""
        if not self._resizes:
            return height, width
        resize = self.augmentations[0].for_size(height, width)
        return resize.new_height, resize.new_width

    @property
    def _resizes(self) -> bool:
        return bool(self.augmentations) and isinstance(self.augmentations[0], ResizeShortSide)

    def __call__(self, image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        """(H, W, 3) uint8 -> (3, h, w) uint8; size as of `InferenceInput`."""
        aug_input, steps = AugInput(image), list(self.augmentations)
        if self._resizes:
            steps[0] = steps[0].for_size(*size)
        AugmentationList(steps)(aug_input)
        pixels = aug_input.image
        if self.mirrored:
            pixels = HFlipTransform(pixels.shape[1]).apply_image(pixels)
        return planes(pixels)


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
        rest = augmentation.MAX_SIZE, cfg.INPUT.RESIZE, cfg.INPUT.MAX_PIXELS, interpolation(cfg)
        resizes = [ResizeShortSide(size, *rest) for size in augmentation.MIN_SIZES]
        mirrored = (False, True) if augmentation.FLIP else (False,)
        return cls([View((resize,), flip) for resize in resizes for flip in mirrored])

    def least(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that no view of an image of this size exceeds in its resize."""
        heights, widths = zip(*(view.size(height, width) for view in self.views), strict=True)
        return max(heights), max(widths)

    def __call__(self, image: np.ndarray, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """Prepare an image.

        Args:
            image: (H, W, 3) uint8, channels as in ``INPUT.FORMAT``.
            size: (height, width) of the file, if it was decoded smaller (`least`).

        Returns:
            ``height`` and ``width`` of the image in pixels, ``image`` (3, h, w) uint8 of the
            first view, and with several views ``views``, a list of dicts with ``image`` and
            ``mirrored``.

        Raises:
            DatasetError: the resized image would have more than INPUT.MAX_PIXELS.
        """
        size = size or image.shape[:2]
        sample: dict[str, Any] = {"height": size[0], "width": size[1]}
        images = [view(image, size) for view in self.views]
        sample["image"] = images[0]
        if len(images) > 1:
            sample["views"] = [
                {"image": pixels, "mirrored": view.mirrored}
                for pixels, view in zip(images, self.views, strict=True)
            ]
        return sample


def bgr_array(image: object, name: str) -> np.ndarray:
    """(H, W, 3) uint8 BGR of an array in BGR or BGRA; alpha is dropped, as `read_image` does.

    Raises:
        DatasetError: says what was found instead, under this name.
    """
    expected = "expected a BGR array (H, W, 3) of uint8, a PIL image, a path or bytes of a file"
    if not isinstance(image, np.ndarray):
        raise DatasetError(f"{name}: found a {type(image).__name__}, {expected}")
    shape, advice = image.shape, ""
    if not image.size:
        raise DatasetError(f"{name}: found an empty array {shape}, {expected}")
    if len(shape) == 3 and shape[0] in (3, 4) and shape[2] not in (3, 4):
        advice = "; channels come last: image.transpose(1, 2, 0)"
    elif len(shape) == 2 or (len(shape) == 3 and shape[2] == 1):
        advice = "; convert with cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)"
    elif len(shape) == 4:
        advice = "; several images are a list"
    if len(shape) != 3 or shape[2] not in (3, 4):
        raise DatasetError(f"{name}: found an array {shape}, {expected}{advice}")
    if image.dtype != np.uint8:
        values = f"values {image.min()} to {image.max()}" if image.dtype.kind in "fiu" else "values"
        if image.dtype.kind == "f" and image.min() >= 0 and image.max() <= 1:
            advice = "; scale it: (image * 255).round().astype('uint8')"
        raise DatasetError(f"{name}: found {image.dtype} {values}, {expected}, 0 to 255{advice}")
    return image[:, :, :3]
