"""YOLO segmentation text: one line "class x1 y1 x2 y2 ..." per polygon, in shares of the image.

https://docs.ultralytics.com/datasets/segment/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tagclip.data.datasets.walk import files_below
from tagclip.data.formats.annotation import (
    AnnotatedImage,
    Segment,
    check_finite,
    polygons_mask,
)
from tagclip.data.formats.export_file import located
from tagclip.data.image_io import image_size
from tagclip.errors import DatasetError
from tagclip.utils.text import one_line
from tagclip.utils.text_file import NotUtf8Error, read_text_file
from tagclip.utils.untrusted import load_yaml

__all__ = ["class_names", "read"]

_IMAGES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_NAME_LISTS = ("classes.txt", "obj.names")
# Rounding may lead out of 0..1 by so much.
_SLACK = 0.01


def class_names(path: Path) -> tuple[str, ...]:
    """``names`` of the data set's yaml file, or the lines of classes.txt.

    Args:
        path: folder of the data set, or its yaml file.

    Raises:
        DatasetError: there are no names, or they have gaps.
    """
    root = _root(path)
    yamls = [path] if path.is_file() else sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    for file in yamls:
        try:
            tree = load_yaml(read_text_file(file))
        except NotUtf8Error as error:
            raise DatasetError(f"{file}: {error}") from error
        except (OSError, ValueError) as error:
            raise DatasetError(f"{file}: not a readable yaml file ({one_line(error)})") from error
        if isinstance(tree, dict) and "names" in tree:
            return _names(tree["names"], file)
    for file in (root / name for name in _NAME_LISTS):
        if file.is_file():
            with located(file):
                lines = read_text_file(file).splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    raise DatasetError(
        f"{path}: found no class names, expected a yaml file with names, or {_NAME_LISTS[0]}; "
        "write one name per line there, in the order of the numbers"
    )


def read(path: Path, images: Path | None = None) -> Iterator[AnnotatedImage]:
    """Read all images, also those without a text file, which show nothing.

    The text of images/a/b.jpg is labels/a/b.txt, that of a/b.jpg, beside it or in another
    folder, a/b.txt.

    Args:
        path: folder of the data set, or its yaml file.
        images: folder of the images; default that of the data set.

    Raises:
        DatasetError: a file is damaged, a text has no image, or two images or texts are one to
            the rule above.
    """
    root, names = _root(path), class_names(path)
    images = images or root
    texts = _by_key(_texts(root), root, "labels")
    found = [file for file in sorted(files_below(images)) if file.suffix.lower() in _IMAGES]
    pictures = _by_key(found, images, "images")
    for key, text in texts.items():
        if key not in pictures:
            raise DatasetError(
                f"{text}: found no image {key} below {images}, expected one; name the folder with "
                "--images, or remove the text"
            )
    for key, picture in pictures.items():
        size = image_size(picture)
        segments = tuple(_segments(texts[key], size, names)) if key in texts else ()
        yield AnnotatedImage(picture.relative_to(images).as_posix(), size, segments)


def _root(path: Path) -> Path:
    if not path.exists():
        raise DatasetError(f"{path}: no such folder or yaml file; check the path")
    return path if path.is_dir() else path.parent


def _texts(root: Path) -> list[Path]:
    """Those in a folder called labels, if there is one; else all but the list of names."""
    files = [file for file in sorted(files_below(root)) if file.suffix.lower() == ".txt"]
    below = [file for file in files if "labels" in file.relative_to(root).parts[:-1]]
    return below or [file for file in files if file.name not in _NAME_LISTS]


def _by_key(files: Iterable[Path], root: Path, folder: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(_key(file, root, folder), file)
        if other is not file:
            raise DatasetError(
                f"{file}: found {other}, too, expected one of the two, as the text of an image is "
                "found by the name without its suffix; rename or remove one"
            )
    return found


def _key(file: Path, root: Path, folder: str) -> str:
    parts = list(file.relative_to(root).with_suffix("").parts)
    if folder in parts[:-1]:
        parts.remove(folder)
    return "/".join(parts)


def _names(names: object, file: Path) -> tuple[str, ...]:
    if isinstance(names, dict) and sorted(map(str, names)) == sorted(map(str, range(len(names)))):
        names = [text for _, text in sorted(names.items(), key=lambda item: int(item[0]))]
    if not isinstance(names, list) or not names:
        raise DatasetError(f"{file}: names is {names!r}, expected a list, or numbers from 0 on")
    # To yaml the words no, off and null are none.
    wrong = next((n for n, name in enumerate(names) if type(name) not in (str, int)), None)
    if wrong is not None:
        raise DatasetError(
            f"{file}: found {names[wrong]!r} as name {wrong}, expected a text; put the name in "
            "quotes"
        )
    return tuple(map(str, names))


def _segments(text: Path, size: tuple[int, int], names: tuple[str, ...]) -> Iterator[Segment]:
    try:
        lines = read_text_file(text).splitlines()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{text}: cannot be read ({one_line(error)})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{text}, line {number}"
        try:
            label, *numbers = map(float, line.split())
        except ValueError as error:
            raise DatasetError(f"{where}: found {line!r}, expected numbers") from error
        if not label.is_integer() or not 0 <= label < len(names):
            raise DatasetError(
                f"{where}: found the class {label:g}, expected 0..{len(names) - 1}, as there are "
                "names"
            )
        if len(numbers) == 4:
            raise DatasetError(
                f"{where}: found a box, expected a polygon; export segmentation, not detection"
            )
        points = np.array(numbers)
        with located(where):
            check_finite(points)
        if len(points) and not (np.abs(points - 0.5) <= 0.5 + _SLACK).all():
            raise DatasetError(
                f"{where}: found coordinates {points.min():g}..{points.max():g}, expected shares "
                "of the image, 0..1"
            )
        sides = np.resize(size[::-1], len(points))
        with located(where):
            mask = polygons_mask(size, [(points * sides).tolist()])
        yield Segment(names[int(label)], mask)
