"""Label Studio's export "Brush labels to PNG": one mask per region.

The files are called task-N-annotation-M-by-WHO-TAG-LABEL-K.png and hold 0 and another value, such
as 128 or 255. They name neither image nor polygons, and have "-" where a label has "/" or a
backslash: the JSON export holds more, and is read by `tagclip.data.formats.label_studio`. Where
it lies beside the PNGs, it tells which image a task is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tagclip.data.formats.annotation import AnnotatedImage, Segment
from tagclip.data.formats.export_file import find_image
from tagclip.data.formats.label_studio import image_names
from tagclip.data.image_io import opened
from tagclip.errors import DatasetError

__all__ = ["class_names", "read"]

_LOGGER = logging.getLogger(__name__)
# Label Studio takes everything but letters, digits, "@" and "." out of WHO.
_NAME = re.compile(r"task-(\d+)-annotation-(\d+)-by-[^-]*-([^-]+)-(.+)-(\d+)\.png")


class _Layer(NamedTuple):
    task: int
    annotation: int
    label: str
    number: int
    path: Path


def class_names(path: str | Path) -> tuple[str, ...]:
    """Labels of the files, sorted: an export names none that is not used."""
    return tuple(sorted({layer.label for layer in _layers(path)}))


def read(path: str | Path, images: str | Path | None = None) -> Iterator[AnnotatedImage]:
    """Read the tasks one after the other; of several annotations of a task the newest counts.

    Args:
        path: the folder of the PNGs. With the json of the same project in it, images have their
            names, as `tagclip.data.formats.label_studio.read` finds them; without, task-N.
        images: the folder of the images, for their names.

    Raises:
        DatasetError: the folder has no such file, or a file is damaged or called otherwise.
    """
    names: dict[str, list[str]] = {}
    for file in sorted(Path(path).glob("*.json")):
        names |= image_names(file)
    several = 0
    for task, group in groupby(_layers(path), key=lambda layer: layer.task):
        layers = list(group)
        newest = layers[-1].annotation
        several += layers[0].annotation != newest
        layers = [layer for layer in layers if layer.annotation == newest]
        size = _size(layers[0].path)
        file = find_image(names.get(str(task), [f"task-{task}"]), images)
        segments = (Segment(layer.label, partial(_mask, layer.path)) for layer in layers)
        yield AnnotatedImage(file, size, tuple(segments))
    if several:
        _LOGGER.warning("%s: %d tasks have several annotations; the newest counts", path, several)


def _layers(path: str | Path) -> list[_Layer]:
    layers = []
    for file in Path(path).glob("*.png"):
        match = _NAME.fullmatch(file.name)
        if match is None:
            raise DatasetError(
                f"{file}: found this name, expected task-N-annotation-M-by-WHO-TAG-LABEL-K.png; "
                "name the folder as Label Studio exports it, without other files"
            )
        task, annotation, _, label, number = match.groups()
        layers.append(_Layer(int(task), int(annotation), label, int(number), file))
    if not layers:
        raise DatasetError(
            f'{path}: found no PNG, expected the folder of the export "Brush labels to PNG"; check '
            "the path"
        )
    return sorted(layers)


def _size(path: Path) -> tuple[int, int]:
    with opened(path, "mask") as image:
        return image.height, image.width


def _mask(path: Path) -> np.ndarray:
    with opened(path, "mask") as image:
        if image.mode not in ("L", "1"):
            raise DatasetError(f"{path}: found the mode {image.mode}, expected gray; export again")
        return np.asarray(image) > 0
