"""What a prediction is: a dict of tensors that shows and saves itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tagclip.errors import ConfigError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_class import is_int
from tagclip.utils.files import expand_path, write_atomic

# What draws is imported by what draws: a prediction that is only computed waits for none of it.
if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PredictedClass", "Prediction"]

# Longer side of a panel in a page of `save`, in pixels.
_PANEL_SIZE = 512
# Of `Prediction.overlay`, in pixels: beyond it OpenCV does not resize.
_LONGEST_SIDE = 32767
# Of classes in a `repr`.
_NAMED = 3


class PredictedClass(NamedTuple):
    """One of the K classes that an image was asked for.

    Attributes:
        name: as in ``class_names``.
        seen: whether the gate took it for seen: by the split, or by its name.
        color: (red, green, blue), each 0..255, in all pictures.
        share: of the pixels, 0 to 1.
    """

    name: str
    seen: bool
    color: tuple[int, int, int]
    share: float


class Prediction(dict[str, Any]):
    """The result of one image: a dict of CPU tensors, and what is usually wanted of them.

    The keys, at the image's own size:

    * ``sem_seg_labels``: (H, W) int16 (int32 above 32767 classes), indices into ``class_names``;
      -1 is "other": a context class won, or MODEL.TAGCLIP.TEST.BACKGROUND or
      BACKGROUND_THRESHOLD says so.
    * ``sem_seg_scores``: (H, W) half, the score that won, after gate and bias; at most 1.
    * ``trusty``: (H, W) half, P(pixel belongs to a seen class), if there is a token.
    * ``top_labels``, ``top_scores``: (k, H, W), with ``top_k``; best first, among the K classes
      only, whatever the context or the threshold say.
    * ``class_names``: list of K names.

    Pictures have the colours, stars and legend of ``tagclip segment``. A notebook shows image,
    segments and trusty map above the shares of the classes.

    Attributes:
        image: (H, W, 3) uint8 BGR. It is the array that was predicted, not a copy: who paints into
            it changes later pictures, and a list of results keeps the pixels of all its images.
        vocabulary: the K classes, with seen and unseen decided.
        file: path that the image was read from; "" without one.
    """

    def __init__(
        self, outputs: Mapping[str, Any], image: np.ndarray, vocabulary: Vocabulary, file: str = ""
    ) -> None:
        """Keep what a model made of an image.

        Args:
            outputs: the keys above but ``class_names``.
            image: see the attributes, as for what follows.
            vocabulary: the K classes.
            file: path of the image.
        """
        super().__init__(outputs, class_names=vocabulary.names)
        self.image, self.vocabulary, self.file = image, vocabulary, file

    @property
    def labels(self) -> Tensor:
        """``sem_seg_labels``."""
        return self["sem_seg_labels"]

    @property
    def scores(self) -> Tensor:
        """``sem_seg_scores``."""
        return self["sem_seg_scores"]

    @property
    def trusty(self) -> Tensor | None:
        """``trusty``; None without a token."""
        return self.get("trusty")

    @property
    def share(self) -> dict[str, float]:
        """Name -> share of the pixels, 0 to 1, of all K classes in their order."""
        return {entry.name: entry.share for entry in self.classes}

    @property
    def other(self) -> float:
        """Share of the pixels, 0 to 1, that got none of the K classes."""
        return self._shares[0]

    @property
    def classes(self) -> list[PredictedClass]:
        """The K classes in their order."""
        vocabulary = self.vocabulary
        columns = vocabulary.names, vocabulary.seen_mask.tolist(), vocabulary.colors.tolist()
        return [
            PredictedClass(name, seen, tuple(color), share)
            for name, seen, color, share in zip(*columns, self._shares[1:], strict=True)
        ]

    @property
    def _shares(self) -> list[float]:
        """Of "other" and of the K classes."""
        indices = self.labels.flatten().long() + 1
        counts = torch.bincount(indices, minlength=len(self.vocabulary) + 1)
        return (counts.double() / len(indices)).tolist()

    def overlay(
        self, alpha: float = 0.7, names: bool = True, size: int | None = None
    ) -> Image.Image:
        """Lay the segments over the image.

        Args:
            alpha: opacity of the colours, 0 to 1.
            names: whether to write names inside the segments.
            size: of the longer side in pixels, 1 to 32767; None: the image's own.

        Returns:
            An RGB image of Pillow; ``numpy.asarray`` makes it (H, W, 3) uint8.

        Raises:
            ConfigError: ``alpha`` or ``size`` is something else.
        """
        is_number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
        if not is_number or not 0 <= alpha <= 1:
            raise ConfigError(f"alpha: found {alpha!r:.40}, expected a number from 0 to 1")
        if size is not None and not (is_int(size) and 0 < size <= _LONGEST_SIDE):
            raise ConfigError(
                f"size: found {size!r:.40}, expected 1 to {_LONGEST_SIDE} pixels, or None"
            )
        from PIL import Image

        from tagclip.visualization.panels import fit
        from tagclip.visualization.segments import draw_segments

        picture, labels = self._rgb, self.labels.numpy()
        if size is not None:
            picture, labels = fit(picture, size), fit(labels, size)
        return Image.fromarray(draw_segments(picture, labels, self.vocabulary, alpha, names))

    def save(self, path: str | Path) -> Path:
        """Write what the name asks for; the file is whole or absent.

        * ``NAME.png``: image, segments, confidence and trusty map above the legend.
        * ``NAME_labels.png``: ids of the classes (of words: 0 to K-1), the ignore label elsewhere.
        * ``NAME.json``: a COCO json of one image (`tagclip.evaluation.coco_json`); its row of
          ``images`` also says the shares and mean scores of the classes.

        They are those that ``tagclip segment`` writes. `overlay` is saved by Pillow.

        Args:
            path: of the file; its folder is created.

        Returns:
            ``path`` without ``~`` and variables.

        Raises:
            ConfigError: the name asks for something else, or the file cannot be written.
        """
        path = Path(expand_path(path))
        suffix = path.suffix.lower()
        if suffix not in (".png", ".json"):
            raise ConfigError(
                f"{path}: found the suffix {path.suffix!r}, expected NAME.png (the picture), "
                "NAME_labels.png (class ids) or NAME.json (COCO); name one of them"
            )
        try:
            if suffix == ".json":
                return write_atomic(path, self._coco(self.file or path.stem))
            return self._save_png(path)
        # A zero byte is a ValueError.
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"{path}: cannot be written ({reason}); free space or choose another folder"
            ) from error

    def _save_png(self, path: Path) -> Path:
        from tagclip.data.label_image import label_image
        from tagclip.data.label_notes import words_in
        from tagclip.visualization.panels import save_png
        from tagclip.visualization.prediction_page import draw_prediction

        if path.stem.lower().endswith("_labels"):
            labels, vocabulary = self.labels.numpy(), self.vocabulary
            words = words_in(labels, vocabulary)
            return save_png(path, label_image(labels, vocabulary), words=words)
        return save_png(path, draw_prediction(self._rgb, self, self.vocabulary, _PANEL_SIZE))

    def _coco(self, file: str) -> str:
        from tagclip.evaluation.coco_json import annotations_of, categories_of, format_coco
        from tagclip.visualization.prediction_page import summarize_prediction

        vocabulary = self.vocabulary
        image = {"id": 1, "file_name": file, "ignore_label": vocabulary.ignore_label}
        image |= summarize_prediction(self, vocabulary)
        rows = annotations_of(self.labels.numpy(), self, vocabulary)
        annotations = [{"image_id": 1, **row} for row in rows]
        categories = categories_of(vocabulary)
        return format_coco("segments of an image by TagCLIP", [image], annotations, categories)

    @property
    def _rgb(self) -> np.ndarray:
        return np.ascontiguousarray(self.image[:, :, ::-1])

    def __repr__(self) -> str:
        """One line: size, number of classes, the largest of them."""
        height, width = self.labels.shape
        found = sorted(self.classes, key=lambda entry: -entry.share)
        parts = [f"{e.name} {e.share:.1%}" for e in found[:_NAMED] if e.share]
        parts += ["..."] * any(entry.share for entry in found[_NAMED:])
        parts += [f"other {self.other:.1%}"] * (self.other > 0)
        count = f"{len(found)} class{'es' * (len(found) > 1)}"
        return f"Prediction({width}x{height} pixels, {count}: {', '.join(parts)})"

    def _repr_html_(self) -> str:
        """What a notebook shows; needs nothing but itself."""
        from tagclip.visualization.prediction_html import prediction_html

        return prediction_html(self._rgb, self, self.vocabulary)
