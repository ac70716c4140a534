"""What files of ``tagclip segment`` say of themselves: what made them, and of which image."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from tagclip.errors import DatasetError
from tagclip.modeling.clip.weights import file_sha256
from tagclip.utils.png_notes import read_notes

__all__ = ["ImageNote", "refuse_foreign"]


class ImageNote:
    """By what a finished file is known: what it was made with, and of which image."""

    def __init__(self, made: str, image: Path) -> None:
        """Keep the parts.

        Args:
            made: three words: a fingerprint of all but the image, its size and time.
            image: of which a checksum of its path stands in the note, which is handed on.
        """
        self._made, self._image = made.split(), image
        self._place = hashlib.sha256(os.fsencode(image.absolute())).hexdigest()[:16]

    @cached_property
    def _content(self) -> str:
        return file_sha256(self._image)[:16]

    def __str__(self) -> str:
        return " ".join([*self._made, self._place, self._content])

    def is_of(self, found: str | None) -> bool:
        """Whether another run's note says the same, wherever the image was then."""
        return (found or "").split()[:3] == self._made and not self.is_of_other(found)

    def is_of_other(self, found: str | None) -> bool:
        """Whether another run's note is of another image; earlier versions do not say of which."""
        words = (found or "").split()
        return words[3:4] not in ([], [self._place]) and words[4:] != [self._content]


def refuse_foreign(labels: Mapping[str, Path]) -> None:
    """Refuse label files of other images than those that they are taken for.

    Args:
        labels: image -> label file; those without a note may be of any.

    Raises:
        DatasetError: names one.
    """
    bar = {"total": len(labels), "unit": "image", "disable": None, "delay": 1}
    for image, label in tqdm(labels.items(), "Images of labels", **bar):
        note = read_notes(label)[0]
        if ImageNote("", Path(image)).is_of_other(note):
            raise DatasetError(
                f"{label}: found labels that segment made of another image than {image}, expected "
                "those of this one; segment it again with --overwrite, or name the folder of the "
                "other's images"
            )
