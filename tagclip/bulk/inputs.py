"""What a bulk run is asked to segment: images, tar and parquet files, each with its id."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tagclip.data.datasets.walk import files_below, files_matching
from tagclip.data.image_io import IMAGE_SUFFIXES, announce_other_images
from tagclip.errors import ConfigError
from tagclip.utils.files import expand_path, is_address
from tagclip.utils.text import counted, shortened, utf8_text

__all__ = [
    "DOWNLOAD",
    "GONE",
    "InputFile",
    "file_size",
    "find_inputs",
    "input_kind",
    "is_image_name",
    "valid_text",
]

DOWNLOAD = "download the images, such as with img2dataset, whose tars are read"
"""What to do about addresses in the place of images, for the end of a message."""
# Size of a file that is not there.
GONE = -1
# What ends a line or acts on a terminal; NUL is in no path.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_LISTS = (".txt",)
_KINDS = {".parquet": "parquet", ".tar": "tar", ".tar.gz": "tar", ".tgz": "tar"}


class InputFile(NamedTuple):
    """A file to read.

    Attributes:
        id: its path below the input, with ``/``. What is no UTF-8, and control characters,
            are escaped as in Python.
        path: where it is, absolute.
        size: in bytes; `GONE` if it is not there.
        images: of a parquet file of paths, sha256 (hex) of the sizes of the images that it names
            (`tagclip.bulk.members.with_image_sizes`); "" of all others.
    """

    id: str
    path: str
    size: int
    images: str = ""


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image; its content does not matter."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in IMAGE_SUFFIXES and not os.path.basename(name).startswith(".")


def input_kind(name: str) -> str:
    """Return ``tar`` or ``parquet`` for a file of many images, else ``files``."""
    lower = name.lower()
    return next((kind for suffix, kind in _KINDS.items() if lower.endswith(suffix)), "files")


def valid_text(name: str) -> str:
    """Return the id of a path: in UTF-8 and of one line."""
    escaped = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), name)
    return utf8_text(escaped)


def find_inputs(inputs: Sequence[str], output: Path) -> list[InputFile]:
    """List the files that a command line names.

    Args:
        inputs: of each kind any number: folders, with the folders below; globs; .txt files with a
            path per line, relative to their folder; tar and parquet files; images of any suffix.
            In folders and globs images, tar and parquet files are known by their suffixes.
        output: a folder, whose own files are no input.

    Returns:
        By code points of their ids, whatever the order on the disk. A file that a list or a link
        names is there even if it is missing: that is an error of one image.

    Raises:
        ConfigError: an input does not exist, names nothing or only the output's own, a list is no
            text, or two files have one id.
    """
    is_own = _is_below(output)
    found: dict[str, InputFile] = {}
    for text in inputs:
        count = 0
        for name, path in _expand(text, is_own):
            count += 1
            image_id = valid_text(name)
            other = found.get(image_id)
            if other is None:
                found[image_id] = InputFile(image_id, path, file_size(path))
            elif os.path.realpath(other.path) != os.path.realpath(path):
                raise ConfigError(
                    f"INPUT: {other.path} and {path} would both be called {image_id}; give the "
                    "folder that holds both instead, or bulk runs with an --output of their own"
                )
        own = 0 if count else sum(1 for _ in _expand(text, lambda _: False))
        if own:
            raise ConfigError(
                f"INPUT {text}: found {counted(own, 'file')}, all within --output {output}, whose "
                "files are no input, expected some elsewhere; give another --output"
            )
        if not count:
            kinds = ", ".join(sorted((*IMAGE_SUFFIXES, *_KINDS)))
            raise ConfigError(
                f"INPUT {text}: found nothing there, expected images, tar or parquet files "
                f"({kinds}), a folder of them, or a .txt that lists them; check the path"
            )
    return [found[image_id] for image_id in sorted(found)]


def _expand(text: str, is_own: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """(path below the input, path) of the files that one input names."""
    # On another machine of a cluster the working folder is another.
    path = Path(expand_path(text)).absolute()
    if path.is_file():
        if path.suffix.lower() in _LISTS:
            yield from _read_list(path)
        else:
            yield path.name, str(path)
        return
    if path.is_dir():
        top, files = path, map(str, files_below(path))
    else:
        top, paths = files_matching(path)
        files = map(str, paths)
    others = []
    for file in files:
        if not is_image_name(file) and input_kind(file) == "files":
            others.append(file)
        elif not os.path.isdir(file) and not is_own(os.path.dirname(file)):
            yield file.removeprefix(str(top)).lstrip(os.sep).replace(os.sep, "/"), file
    announce_other_images(text, others)


def _read_list(path: Path) -> Iterator[tuple[str, str]]:
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise ConfigError(f"INPUT {path}: cannot be read ({error.strerror}); mend it") from error
    if b"\0" in content:
        raise ConfigError(
            f"INPUT {path}: found NUL, expected a path per line in UTF-8; save it as such (from "
            "UTF-16: iconv -f UTF-16 -t UTF-8)"
        )
    for number, line in enumerate(content.split(b"\n"), 1):
        if name := os.fsdecode(line.rstrip(b"\r")):
            if is_address(name):
                raise ConfigError(
                    f"INPUT {path}: line {number} is the address {shortened(name, 80)}, expected "
                    f"the path of a file; {DOWNLOAD}"
                )
            yield Path(name).as_posix(), os.path.join(path.parent, name)


def file_size(path: str) -> int:
    """Return the bytes of a file, 0 of what is no file, `GONE` of what is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return GONE
    # What is no file has no size that could say whether it changed.
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _is_below(output: Path) -> Callable[[str], bool]:
    """Whether a folder is the output or in it, also through links."""
    root = os.path.realpath(output)

    @cache
    def is_below(folder: str) -> bool:
        return os.path.commonpath((root, os.path.realpath(folder))) == root

    return is_below
