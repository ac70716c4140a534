"""Lists of images, or of images and labels, as people and other projects write them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tagclip.data.datasets.pairing import NamedFiles
from tagclip.errors import DatasetError
from tagclip.utils.text_file import NotUtf8Error, read_text_file

__all__ = ["ImageList", "PairList", "plain_name", "read_lines"]

_EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".mat", ".png", ".tif", ".tiff", ".webp"}
# What stands between two columns.
_TAB, _BLANK = re.compile(r"\s*\t\s*"), re.compile(r"\s*,\s*|\s+")


def read_lines(path: str | Path) -> list[str]:
    """Lines of a UTF-8 text, with or without a byte-order mark, that are not blank; stripped.

    Raises:
        DatasetError: the file is missing, cannot be read, or has no such line.
    """
    try:
        text = read_text_file(path)
    except NotUtf8Error as error:
        raise DatasetError(f"{path}: {error}") from error
    except OSError as error:
        raise DatasetError(
            f"{path}: no readable list of images ({type(error).__name__})"
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
    with or without suffix and extension, with slashes or back-slashes; behind it may stand its
    label. Lines that begin with # are comments, unless an image is called so.

    Attributes:
        path: the text file.
        root: the folder; no line leads out of it.
        suffix, label_suffix: of images and labels (`NamedFiles.stem_suffix`).
    """

    path: str
    root: str
    suffix: str = ""
    label_suffix: str = ""

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
            name = self.name(line, images) or self._first_column(line, images, labels)
            if name is not None:
                names.add(name)
            elif not line.startswith("#"):
                unknown[line] = self._remedy(line, images)
        if not names and not unknown:
            raise DatasetError(f"{self.path}: names no image")
        return names, unknown

    def name(self, text: str, images: Mapping[str, str]) -> str | None:
        """The name of an image that a text means; None if it means none."""
        names = (n for r in self._readings(text) for n in (r, r.removesuffix(self.suffix)))
        return next((name for name in names if name in images), None)

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
        name = self.name(first, images)
        if name is None or len(rest) != 1 or name not in labels:
            return None
        parts = [part for part in plain_name(rest[0]).split("/") if part not in ("", "..")]
        is_its_label = plain_name(labels[name]).split("/")[-len(parts) :] == parts
        return name if is_its_label else None

    def _remedy(self, line: str, images: Mapping[str, str]) -> str:
        columns = line.replace(",", " ").split()
        has_two = len(columns) == 2 and all("/" in plain_name(column) for column in columns)
        if has_two or self.name(columns[0], images):
            return (
                "write one name a line, or call the list pairs in place of image_list: labels "
                "are found by the names of the images"
            )
        if line.replace("\\", "/").startswith(("/", "../")):
            return "it leads out of the folder: list images below it"
        ends = plain_name(line).removesuffix(self.label_suffix)
        if self.label_suffix and self.name(ends, images):
            return f"it is a label: list images, here {ends + self.suffix}"
        return "write its path below the folder, or add the image"


@dataclass(frozen=True)
class PairList:
    """A text file that names images and their labels, an image and its label on each line.

    Between the two stand a tab, a comma or blanks; paths may be in double quotes. A path is one
    below the folder of its kind, where it may lack its extension, or below that of the text file,
    or an absolute one. Those to files in the folder of their kind may also begin at one above it
    (as in ``JPEGImages/1.jpg SegmentationClass/1.png``). An image alone has the label of its name.
    Lines that begin with # are comments.

    Attributes:
        path: the text file.
        images, labels: the two kinds of files.
    """

    path: str
    images: NamedFiles
    labels: NamedFiles

    def resolve(
        self, by_name: Callable[[], tuple[Mapping[str, str], Mapping[str, str]]]
    ) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        """Find the files of the lines.

        Args:
            by_name: gives the paths of images and of labels by name, for lines with an image alone
                or names without extension.

        Returns:
            Paths of images and of labels by name; the lines without them, each with what to do.

        Raises:
            DatasetError: see `read_lines`; or a line can be read in two ways, an image has two
                labels, or a label two images.
        """
        label_of: dict[str, str] = {}
        image_of: dict[str, str] = {}
        unknown: dict[str, str] = {}
        lookup = _Lookup(self, by_name)
        for line in read_lines(self.path):
            if line.startswith("#"):
                continue
            pairs = lookup.pairs(line) or lookup.pairs(re.sub(r"\s+#.*", "", line))
            if len(pairs) > 1:
                raise DatasetError(
                    f"{self.path}: {line!r} can be read in {len(pairs)} ways; write a tab between "
                    "the two paths"
                )
            if not pairs:
                unknown[line] = lookup.remedy(line)
            for image, label in pairs:
                self._refuse_second(label_of.setdefault(image, label), label, image, "labels")
                self._refuse_second(image_of.setdefault(label, image), image, label, "images")
        if not label_of and not unknown:
            raise DatasetError(f"{self.path}: names no image")
        names = self._names(list(label_of))
        pairs = zip(names, label_of.items(), strict=True)
        images, labels = {}, {}
        for name, (image, label) in pairs:
            images[name], labels[name] = image, label
        return images, labels, unknown

    def _refuse_second(self, first: str, second: str, partner: str, what: str) -> None:
        if first != second:
            raise DatasetError(
                f"{self.path}: {partner} has two {what}, {first} and {second}; leave one of the "
                "two lines"
            )

    def _names(self, images: list[str]) -> list[str]:
        """Paths of images below their folder, or below one that holds all, without extension."""
        folders = [os.path.abspath(self.images.root), *map(os.path.abspath, images)]
        base = os.path.commonpath(folders) if images else ""
        paths = [os.path.relpath(image, base).replace(os.sep, "/") for image in images]
        stems = [os.path.splitext(path)[0] for path in paths]
        return stems if len(set(stems)) == len(stems) else paths


class _Lookup:
    """Finds the files that lines of a `PairList` mean."""

    def __init__(
        self,
        pairs: PairList,
        by_name: Callable[[], tuple[Mapping[str, str], Mapping[str, str]]],
    ) -> None:
        self._kinds = (pairs.images, pairs.labels)
        self._lists = [ImageList(pairs.path, kind.root, kind.stem_suffix) for kind in self._kinds]
        self._by_name = by_name
        self._found: tuple[Mapping[str, str], Mapping[str, str]] | None = None

    def pairs(self, line: str) -> set[tuple[str, str]]:
        """(image, label) of each way to read a line whose files are there."""
        pairs = set()
        for first, second in _columns(line):
            image = self._path(first, 0)
            label = self._path(second, 1) if image else None
            if image and label:
                pairs.add((image, label))
        if not pairs:
            images, labels = self._names()
            name = self._lists[0].name(_unquoted(line), images)
            pairs = {(images[name], labels[name])} if name in labels else set()
        return pairs

    def remedy(self, line: str) -> str:
        """What to do about a line that means no pair."""
        for first, second in _columns(line):
            if self._path(first, 0):
                return f"there is no label {second} at {self._kinds[1].root}: mend its path"
        images, _ = self._names()
        if self._lists[0].name(_unquoted(line), images):
            return "write its label behind it, after a tab"
        return (
            f"mend the paths, which may begin at {self._kinds[0].root}, or put a # before a "
            "line that is none"
        )

    def _names(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        if self._found is None:
            self._found = self._by_name()
        return self._found

    def _path(self, text: str, kind: int) -> str | None:
        """The file that a column means."""
        listed, root = self._lists[kind], os.path.abspath(self._kinds[kind].root)
        for written in dict.fromkeys((text, text.replace("\\", "/"))):
            if os.path.splitext(written)[1].lower() not in _EXTENSIONS:
                continue
            # Lists of VOC's kind begin with a slash at a folder above.
            below = written.lstrip("/")
            inside = (os.path.join(folder, below) for folder in Path(root).parents)
            inside = (path for path in map(os.path.normpath, inside) if path.startswith(root + "/"))
            beside = os.path.join(os.path.dirname(listed.path), below)
            absolute = (written,) if os.path.isabs(written) else ()
            for path in (*absolute, os.path.join(root, below), beside, *inside):
                if os.path.isfile(path):
                    return os.path.normpath(path)
        files = self._names()[kind]
        name = listed.name(text, files)
        return None if name is None else files[name]


def _columns(line: str) -> Iterator[tuple[str, str]]:
    """Each way to take a line apart in two."""
    for gap in (_TAB if "\t" in line else _BLANK).finditer(line):
        first, second = line[: gap.start()], line[gap.end() :]
        if first and second:
            yield _unquoted(first), _unquoted(second)


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
