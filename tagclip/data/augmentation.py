"""Training augmentation: random resize, crop, flip and photometric distortion.

Every random number comes from numpy's global generator, so that its state alone decides a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data.transforms import Augmentation, ColorTransform, RandomFlip
from fvcore.transforms.transform import CropTransform, Transform

from tagclip.config.checks import check_config
from tagclip.data.inference_input import ResizeTransform, fit_size, interpolation
from tagclip.data.memory_order import contiguous

__all__ = [
    "CategoryCrop",
    "PhotometricChange",
    "PhotometricDistortion",
    "RandomResize",
    "build_train_augmentations",
]

_CROP_REDRAWS = 10
# Up to this number float32, in which OpenCV counts, has every integer.
_EXACT_FLOATS = 1 << 24
_LEVELS = np.arange(256)


class RandomResize(Augmentation):
    """Resize to fit into (long, short) times a random factor."""

    def __init__(
        self,
        short: Sequence[int],
        long: int,
        scale_range: tuple[float, float],
        library: str,
        interpolation: str = "bilinear",
    ):
        """
        Args:
            short: bounds of the short side in pixels; one is drawn.
            long: bound of the long side in pixels; 0 sets none.
            scale_range: range of the factor u; bounds become int(bound * u).
            library: "cv2" or "pil".
            interpolation: "bilinear" or "bicubic".
        """
        super().__init__()
        self.short, self.long = tuple(short), long
        self.scale_range, self.library, self.interpolation = scale_range, library, interpolation

    def get_transform(self, image: np.ndarray) -> ResizeTransform:
        """Draw the factor for an (H, W, 3) image."""
        return self.for_size(*image.shape[:2])

    def for_size(self, height: int, width: int) -> ResizeTransform:
        """Draw the factor for an image of this size."""
        short = self.short[0] if len(self.short) == 1 else int(np.random.choice(self.short))
        factor = np.random.uniform(*self.scale_range)
        # A bound of 0 would mean no bound.
        long = max(1, int(self.long * factor)) if self.long else 0
        size = fit_size(height, width, max(1, int(short * factor)), long)
        return ResizeTransform(height, width, *size, self.library, self.interpolation)


class CategoryCrop(Augmentation):
    """Random crop in which no class covers too much.

    A crop is redrawn, 10 times at most, until it has more than one class and none of them covers
    `max_area` or more of its labelled pixels (docs/method.md, section 7). A side of the
    image that is shorter than the crop stays whole.
    """

    def __init__(self, size: tuple[int, int], max_area: float, ignore_index: int):
        """
        Args:
            size: (height, width) of the crop in pixels.
            max_area: share in (0, 1]; 1 accepts every crop.
            ignore_index: label that belongs to no class.
        """
        super().__init__()
        self.size, self.max_area, self.ignore_index = tuple(size), max_area, ignore_index

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        """Draw a crop of an (H, W, 3) image with its re-indexed (H, W) label."""
        height, width = image.shape[:2]
        crop_h, crop_w = min(self.size[0], height), min(self.size[1], width)
        is_whole = (crop_h, crop_w) == (height, width)
        y, x = self._draw(height - crop_h, width - crop_w)
        if self.max_area < 1 and not is_whole:
            for _ in range(_CROP_REDRAWS):
                if self.accepts(sem_seg[y : y + crop_h, x : x + crop_w]):
                    break
                y, x = self._draw(height - crop_h, width - crop_w)
        return CropTransform(x, y, crop_w, crop_h, width, height)

    def accepts(self, sem_seg: np.ndarray) -> bool:
        """Whether a cropped (h, w) label has several classes and none covers `max_area`."""
        counts = _label_counts(sem_seg)
        counts[self.ignore_index : self.ignore_index + 1] = 0
        counts = counts[counts > 0]
        return len(counts) > 1 and counts.max() < self.max_area * counts.sum()

    @staticmethod
    def _draw(margin_y: int, margin_x: int) -> tuple[int, int]:
        return int(np.random.randint(margin_y + 1)), int(np.random.randint(margin_x + 1))


def _label_counts(label: np.ndarray) -> np.ndarray:
    """int64 number of pixels of the values 0, 1, ... of an (H, W) label."""
    if label.dtype == np.uint8 and label.size <= _EXACT_FLOATS:
        return cv2.calcHist([label], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return np.bincount(label.ravel())


@dataclass(frozen=True)
class PhotometricChange:
    """Change of brightness, contrast, saturation and hue of an 8-bit image.

    Attributes:
        brightness: added to all channels, in gray levels.
        contrast: factor of all channels.
        saturation: factor of S in HSV.
        hue: added to H in HSV, in steps of 2 degrees (OpenCV's 8-bit scale, 180 a turn).
        contrast_first: contrast before saturation and hue, else after.
        image_format: "RGB" or "BGR".
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: int = 0
    contrast_first: bool = True
    image_format: str = "RGB"

    def __call__(self, img: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 to the same."""
        img = contiguous(img)
        first, last = _linear(1.0, self.brightness), _linear(self.contrast, 0.0)
        if self.contrast_first:
            first, last = last[first], _LEVELS
        img = self._shift_hue_saturation(_mapped(img, first))
        return _mapped(img, last)

    def _shift_hue_saturation(self, img: np.ndarray) -> np.ndarray:
        if self.saturation == 1 and self.hue == 0:
            return img
        is_rgb = self.image_format == "RGB"
        hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV if is_rgb else cv2.COLOR_BGR2HSV)
        for channel, table in enumerate(
            ((_LEVELS + self.hue) % 180, _linear(self.saturation, 0.0))
        ):
            if channel or self.hue:
                changed = _mapped(cv2.extractChannel(hsv, channel), table)
                cv2.insertChannel(changed, hsv, channel)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB if is_rgb else cv2.COLOR_HSV2BGR)


def _linear(factor: float, offset: float) -> np.ndarray:
    """Table of clip(factor * x + offset, 0, 255), rounded down."""
    return np.clip(_LEVELS.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def _mapped(array: np.ndarray, table: np.ndarray) -> np.ndarray:
    """table[array] for uint8; the array itself if nothing changes."""
    return array if (table == _LEVELS).all() else cv2.LUT(array, table.astype(np.uint8))


class PhotometricDistortion(Augmentation):
    """SSD's photometric distortion (arXiv:1512.02325) with mmseg's ranges.

    With probability 0.5 each: brightness +-32, contrast 0.5..1.5, saturation 0.5..1.5, hue +-18
    steps of 2 degrees; contrast comes before or after the other two, also with 0.5.
    """

    def __init__(self, image_format: str):
        super().__init__()
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw all parameters; the number of draws is always the same."""
        switches = np.random.randint(2, size=5).astype(bool)
        brightness, contrast, saturation = np.random.uniform((-32, 0.5, 0.5), (32, 1.5, 1.5))
        hue = int(np.random.randint(-18, 19))
        change = PhotometricChange(
            brightness=brightness if switches[0] else 0.0,
            contrast=contrast if switches[1] else 1.0,
            saturation=saturation if switches[2] else 1.0,
            hue=hue if switches[3] else 0,
            contrast_first=bool(switches[4]),
            image_format=self.image_format,
        )
        return ColorTransform(change)


def build_train_augmentations(cfg: CfgNode, ignore_index: int) -> list[Augmentation]:
    """Resize, crop, flip and photometric distortion, as `cfg.INPUT` says.

    Args:
        cfg: the config.
        ignore_index: value of ignored pixels in the re-indexed labels.

    Returns:
        Augmentations for an `AugInput` with `image` (H, W, 3) uint8 and `sem_seg` (H, W) uint8 or
        int32. Images smaller than the crop stay smaller.

    Raises:
        ConfigError: a value does not make sense.
    """
    check_config(cfg)
    inputs = cfg.INPUT
    shorts = tuple(inputs.MIN_SIZE_TRAIN)
    if inputs.MIN_SIZE_TRAIN_SAMPLING == "range":
        shorts = range(min(shorts), max(shorts) + 1)
    scales = tuple(inputs.SCALE_RANGE)
    rest = inputs.MAX_SIZE_TRAIN, scales, inputs.RESIZE, interpolation(cfg)
    augmentations = [RandomResize(shorts, *rest)]
    if inputs.CROP.ENABLED:
        area = inputs.CROP.SINGLE_CATEGORY_MAX_AREA
        augmentations.append(CategoryCrop(inputs.CROP.SIZE, area, ignore_index))
    if inputs.RANDOM_FLIP != "none":
        is_horizontal = inputs.RANDOM_FLIP == "horizontal"
        augmentations.append(RandomFlip(horizontal=is_horizontal, vertical=not is_horizontal))
    if inputs.COLOR_AUG_SSD:
        augmentations.append(PhotometricDistortion(inputs.FORMAT))
    return augmentations
