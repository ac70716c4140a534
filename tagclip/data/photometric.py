"""Random brightness, contrast, saturation and hue."""

from __future__ import annotations

import cv2
import numpy as np
from detectron2.data.transforms import Augmentation
from fvcore.transforms.transform import Transform

__all__ = ["PhotometricDistortion", "PhotometricTransform"]


class PhotometricTransform(Transform):
    """Brightness, contrast, saturation and hue of an 8-bit image; labels stay as they are."""

    def __init__(
        self,
        *,
        brightness: float = 0.0,
        contrast: float = 1.0,
        saturation: float = 1.0,
        hue: int = 0,
        contrast_first: bool = True,
        image_format: str = "RGB",
    ):
        """
        Args:
            brightness: added to all channels, in gray levels.
            contrast: factor of all channels.
            saturation: factor of S in HSV.
            hue: added to H in HSV, in steps of 2 degrees (OpenCV's 8-bit scale, 180 a turn).
            contrast_first: contrast before saturation and hue, else after.
            image_format: "RGB" or "BGR".
        """
        super().__init__()
        self.brightness, self.contrast = brightness, contrast
        self.saturation, self.hue = saturation, hue
        self.contrast_first, self.image_format = contrast_first, image_format

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 to the same."""
        img = _linear(img, 1.0, self.brightness)
        if self.contrast_first:
            img = _linear(img, self.contrast, 0.0)
        img = self._shift_hue_saturation(img)
        if not self.contrast_first:
            img = _linear(img, self.contrast, 0.0)
        return img

    def _shift_hue_saturation(self, img: np.ndarray) -> np.ndarray:
        if self.saturation == 1 and self.hue == 0:
            return img
        is_rgb = self.image_format == "RGB"
        hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV if is_rgb else cv2.COLOR_BGR2HSV)
        hsv[:, :, 1] = _linear(hsv[:, :, 1], self.saturation, 0.0)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(np.int16) + self.hue) % 180
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB if is_rgb else cv2.COLOR_HSV2BGR)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """The label itself."""
        return segmentation

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """The points themselves."""
        return coords


def _linear(array: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """clip(factor * x + offset, 0, 255), rounded down."""
    if factor == 1 and offset == 0:
        return array
    table = np.clip(np.arange(256, dtype=np.float32) * factor + offset, 0, 255).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(array), table)


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
        return PhotometricTransform(
            brightness=brightness if switches[0] else 0.0,
            contrast=contrast if switches[1] else 1.0,
            saturation=saturation if switches[2] else 1.0,
            hue=hue if switches[3] else 0,
            contrast_first=bool(switches[4]),
            image_format=self.image_format,
        )
