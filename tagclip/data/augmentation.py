"""Training and test augmentation with the geometry of the released pipeline.

Every random number comes from numpy's global generator, so that its state alone decides a sample.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data.transforms import Augmentation, RandomFlip
from detectron2.utils.logger import log_first_n
from fvcore.transforms.transform import CropTransform, Transform
from PIL import Image

from tagclip.config.checks import check_config
from tagclip.data.photometric import PhotometricDistortion
from tagclip.errors import DatasetError

__all__ = [
    "CategoryCrop",
    "RandomResize",
    "ResizeShortSide",
    "ResizeTransform",
    "build_test_augmentations",
    "build_train_augmentations",
    "fit_size",
]

_CROP_REDRAWS = 10


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
    """Bilinear resize of images, nearest-neighbour resize of labels.

    "cv2" takes no mean over the pixels that a smaller image leaves out; "pil" does.
    Both keep every integer label exact.
    """

    def __init__(self, height: int, width: int, new_height: int, new_width: int, library: str):
        super().__init__()
        self.height, self.width = height, width
        self.new_height, self.new_width = new_height, new_width
        self.library = library

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

    def inverse(self) -> Transform:
        """The resize back to the old size."""
        new = self.new_height, self.new_width
        return ResizeTransform(*new, self.height, self.width, self.library)

    def _resize(self, array: np.ndarray, nearest: bool) -> np.ndarray:
        if array.shape[:2] == (self.new_height, self.new_width):
            return array
        size = self.new_width, self.new_height
        if self.library == "cv2":
            mode = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
            return cv2.resize(array, size, interpolation=mode)
        mode = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
        return np.array(Image.fromarray(array).resize(size, mode))


class RandomResize(Augmentation):
    """Resize to fit into (long, short) times a random factor."""

    def __init__(
        self, short: Sequence[int], long: int, scale_range: tuple[float, float], library: str
    ):
        """
        Args:
            short: bounds of the short side in pixels; one is drawn.
            long: bound of the long side in pixels; 0 sets none.
            scale_range: range of the factor u; bounds become int(bound * u).
            library: "cv2" or "pil".
        """
        super().__init__()
        self.short, self.long = tuple(short), long
        self.scale_range, self.library = scale_range, library

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the factor for an (H, W, 3) image."""
        short = self.short[0] if len(self.short) == 1 else int(np.random.choice(self.short))
        factor = np.random.uniform(*self.scale_range)
        height, width = image.shape[:2]
        # A bound of 0 would mean no bound.
        long = max(1, int(self.long * factor)) if self.long else 0
        size = fit_size(height, width, max(1, int(short * factor)), long)
        return ResizeTransform(height, width, *size, self.library)


class ResizeShortSide(Augmentation):
    """Resize the short side to exactly `short` pixels unless the long side passes `long` (> 0).

    A thin strip that would become larger than `max_pixels` (> 0) is not enlarged, which is logged.
    """

    def __init__(self, short: int, long: int, library: str, max_pixels: int = 0):
        super().__init__()
        self.short, self.long, self.library = short, long, library
        self.max_pixels = max_pixels

    def get_transform(self, image: np.ndarray) -> Transform:
        """For an (H, W, 3) image.

        Raises:
            DatasetError: it is larger than `max_pixels` even so.
        """
        height, width = image.shape[:2]
        size = fit_size(height, width, self.short, self.long)
        if 0 < self.max_pixels < size[0] * size[1]:
            size = self._not_enlarged(height, width, size)
        return ResizeTransform(height, width, *size, self.library)

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
        counts = np.bincount(sem_seg.ravel(), minlength=self.ignore_index + 1)
        counts[self.ignore_index] = 0
        counts = counts[counts > 0]
        return len(counts) > 1 and counts.max() < self.max_area * counts.sum()

    @staticmethod
    def _draw(margin_y: int, margin_x: int) -> tuple[int, int]:
        return int(np.random.randint(margin_y + 1)), int(np.random.randint(margin_x + 1))


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
    augmentations = [RandomResize(shorts, inputs.MAX_SIZE_TRAIN, scales, inputs.RESIZE)]
    if inputs.CROP.ENABLED:
        area = inputs.CROP.SINGLE_CATEGORY_MAX_AREA
        augmentations.append(CategoryCrop(inputs.CROP.SIZE, area, ignore_index))
    if inputs.RANDOM_FLIP != "none":
        is_horizontal = inputs.RANDOM_FLIP == "horizontal"
        augmentations.append(RandomFlip(horizontal=is_horizontal, vertical=not is_horizontal))
    if inputs.COLOR_AUG_SSD:
        augmentations.append(PhotometricDistortion(inputs.FORMAT))
    return augmentations


def build_test_augmentations(cfg: CfgNode) -> list[Augmentation]:
    """Resize of the short side to `INPUT.MIN_SIZE_TEST` (0: none).

    `INPUT.MAX_SIZE_TEST` bounds the long side (0: not at all, as the released pipeline).
    """
    inputs = cfg.INPUT
    if inputs.MIN_SIZE_TEST == 0:
        return []
    rest = inputs.MAX_SIZE_TEST, inputs.RESIZE, inputs.MAX_PIXELS
    return [ResizeShortSide(inputs.MIN_SIZE_TEST, *rest)]
