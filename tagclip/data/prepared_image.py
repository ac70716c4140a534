"""An image in any form, made ready for the model where there need be no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from tagclip.data.image_io import image_pixels, opened, read_image
from tagclip.data.inference_input import InferenceInput, bgr_array
from tagclip.errors import DatasetError
from tagclip.utils.text import error_text

__all__ = ["ImageLike", "ImagePreparer", "PreparedImage"]

# BGR (H, W, 3) or BGRA, an image of Pillow, a path, or the bytes of an image file.
ImageLike = np.ndarray | Image.Image | str | Path | bytes


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """What the model takes of an image, and what is left to know about it.

    Attributes:
        name: of the image in messages.
        input: for `TagCLIP.encode`, see `InferenceInput`; tensors on the CPU.
        size: (height, width) of the image in pixels.
        pixels: (H, W, 3) uint8 BGR, if they were to be kept.
    """

    name: str
    input: dict[str, Any]
    size: tuple[int, int]
    pixels: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors and pixels."""
        views = self.input.get("views", [self.input])
        kept = 0 if self.pixels is None else self.pixels.nbytes
        return kept + sum(view["image"].nbytes for view in views)


class ImagePreparer:
    """Reads and resizes images as a config says; needs no model, and can be pickled."""

    def __init__(self, inputs: InferenceInput, image_format: str, max_pixels: int) -> None:
        """Keep how.

        Args:
            inputs: makes the views.
            image_format: "RGB" or "BGR", channels that the model takes.
            max_pixels: images with more are refused; 0 sets no limit.
        """
        self.inputs, self.image_format, self.max_pixels = inputs, image_format, max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ImagePreparer:
        """Build from a config that `resolve_pixels` has seen."""
        return cls(InferenceInput.from_config(cfg), cfg.INPUT.FORMAT, cfg.INPUT.MAX_PIXELS)

    def __call__(self, image: ImageLike, name: str, keep_pixels: bool = False) -> PreparedImage:
        """Prepare an image.

        Args:
            image: read as `tagclip.data.image_io.read_image` says: alpha is dropped.
            name: of the image in messages.
            keep_pixels: whether the result brings the pixels along.

        Raises:
            DatasetError: the image is missing, damaged, too large, or of another form.
        """
        pixels = self._pixels(image, name)
        shown = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if self.image_format == "RGB" else pixels
        try:
            sample = self.inputs(np.ascontiguousarray(shown))
        except DatasetError as error:
            raise DatasetError(f"{name}: {error}") from error
        return PreparedImage(name, sample, pixels.shape[:2], pixels if keep_pixels else None)

    def attempt(self, image: ImageLike, name: str) -> PreparedImage | DatasetError:
        """Do what a call does, but return its error.

        The error holds its text alone, so that many can be kept: no traceback, no pixels.
        """
        try:
            return self(image, name)
        except DatasetError as error:
            return DatasetError(*error.args)

    def nbytes(self, image: ImageLike) -> int:
        """Bytes that an image is expected to take while it is prepared, pixels and tensors.

        Known from its header; 0 where there is none, of which a call says more.
        """
        try:
            # Decoded, and with the channels in the order of the model.
            held, copies = 0, 2
            if isinstance(image, np.ndarray):
                copies, (height, width) = 1, image.shape[:2]
            elif isinstance(image, Image.Image):
                width, height = image.size
            elif isinstance(image, (str, Path, bytes)):
                held = len(image) if isinstance(image, bytes) else 0
                # Whether it is turned does not matter, and Pillow decodes a PNG to say so.
                with opened(image, "image") as header:
                    width, height = header.size
            else:
                return 0
            views = [view.size(height, width) for view in self.inputs.views]
        except (DatasetError, ValueError, ZeroDivisionError):
            return 0
        return held + 3 * (copies * height * width + sum(h * w for h, w in views))

    def _pixels(self, image: ImageLike, name: str) -> np.ndarray:
        """(H, W, 3) uint8 BGR of any image."""
        if isinstance(image, (str, Path, bytes)):
            return read_image(image, "BGR", self.max_pixels, name=name)
        if isinstance(image, Image.Image):
            try:
                return image_pixels(image, name, self.max_pixels, "BGR")
            except (OSError, SyntaxError, ValueError) as error:
                raise DatasetError(
                    f"{name}: cannot decode this PIL image ({error_text(error)})"
                ) from error
        return bgr_array(image, name)
