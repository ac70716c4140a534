"""Lists of images, one on each line, as people and other projects write them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tagclip.errors import DatasetError

__all__ = ["ImageList", "plain_name", "read_lines"]

_EXTENSIONS = {".bmp", ".jpeg", ".jpg", ".mat", ".png", ".tif", ".tiff", ".webp"}


def read_lines(path: str | Path) -> list[str]:
    """Lines of a UTF-8 text, with or without a byte-order mark, that are not blank; stripped.

    Raises:
        DatasetError: the file is missing, cannot be read, or has no such line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        remedy = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise DatasetError(
            f"{path}: no readable list of images ({type(error).__name__}){remedy}"
        ) from error
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise DatasetError(f"{path}: names no image")
    return lines


def plain_name(path: str) -> str:
    """A path with slashes, without ``./`` and without the extension of an image or label."""
    path = os.path.normpath(path.replace("\\", "/"))
    stem, extension = os.path.splitext(path)
    return stem if extension.lower() in _EXTENSIONS else path


@dataclass(frozen=True)
class ImageList:
    """A text file that names images of a folder.

    A line is an image's path below the folder, or below that of the text file, or an absolute one,
    with or without extension, with slashes or back-slashes; behind it may stand its label.

    Attributes:
        path: the text file.
        root: the folder; no line leads out of it.
    """

    path: str
    root: str

    def resolve(
        self, images: Mapping[str, str], labels: Mapping[str, str]
    ) -> tuple[set[str], dict[str, str]]:
        """Find the images of the lines.

        Args:
            images, labels: path of each file below the folders, by the name that pairs them.

        Returns:
            Names in `images`; the lines without one, each with what to do about it.

        Raises:
            DatasetError: see `read_lines`.
        """
        names, unknown = set(), {}
        for line in read_lines(self.path):
            name = self._name(line, images) or self._first_column(line, images, labels)
            if name is None:
                unknown[line] = self._remedy(line, images)
            else:
                names.add(name)
        return names, unknown

    def _name(self, text: str, images: Mapping[str, str]) -> str | None:
        return next((name for name in self._readings(text) if name in images), None)

    def _readings(self, text: str) -> Iterator[str]:
        """What a path may be called in the folder, the most literal first."""
        yield text
        yield plain_name(text)
        text, folders = text.replace("\\", "/"), (self.root, os.path.dirname(self.path))
        for folder in folders:
            below = os.path.relpath(os.path.join(folder, text), self.root)
            yield from (below, plain_name(below))
        if os.path.isabs(text):
            # Either path may lead through a link.
            folder, name = os.path.split(os.path.normpath(text))
            real = os.path.relpath(os.path.realpath(folder), os.path.realpath(self.root))
            yield plain_name(os.path.join(real, name))

    def _first_column(
        self, line: str, images: Mapping[str, str], labels: Mapping[str, str]
    ) -> str | None:
        """The image of a line that names its label, too."""
        first, *rest = line.replace(",", " ").split()
        name = self._name(first, images)
        if name is None or len(rest) != 1 or name not in labels:
            return None
        parts = [part for part in plain_name(rest[0]).split("/") if part not in ("", "..")]
        is_its_label = plain_name(labels[name]).split("/")[-len(parts) :] == parts
        return name if is_its_label else None

    def _remedy(self, line: str, images: Mapping[str, str]) -> str:
        if self._name(line.replace(",", " ").split()[0], images):
            return "write one name a line: labels are found by the names of the images"
        if line.replace("\\", "/").startswith(("/", "../")):
            return "it leads out of the folder: list images below it"
        return "write its path below the folder, or add the image"
