"""One label file: converting, writing, comparing, checking."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from prepare_sources import LabelSource

from tagclip.data.image_io import image_size, read_image
from tagclip.data.label_io import check_label, read_label
from tagclip.errors import DatasetError, OutputError
from tagclip.utils.files import temporary_place, write_atomic

__all__ = ["TEMPORARY", "Task", "check_label_file", "compare_label", "make_label"]

# Ends of the names of files that are being written, by `write_atomic` and `_link`.
TEMPORARY = (".tmp", ".link")


@dataclass(frozen=True)
class Task:
    """One label file to make from `source`; `image` is made from `image_source` if that is set.

    While it is ``staged``, what it makes waits under hidden names beside these places.
    """

    source: Path
    output: Path
    image: Path
    origin: LabelSource
    image_source: Path | None
    short_side: int
    staged: bool = False

    @property
    def is_in_place(self) -> bool:
        """Whether the label file is its own source; a link to the source is not."""
        place = self.output.parent.resolve() / self.output.name
        return place in (self.source.parent.resolve() / self.source.name, self.source.resolve())

    @property
    def results(self) -> tuple[Path, ...]:
        """Files that the task makes."""
        return (self.output, self.image) if self.image_source else (self.output,)

    def file(self, place: Path) -> Path:
        """Where one of `results` is now; another file is where it is."""
        is_staged = self.staged and place in self.results
        return place.with_name(f".{place.name}.new{TEMPORARY[0]}") if is_staged else place

    def stage(self) -> Task:
        """The task that leaves what is there as it is until `take_places`.

        Raises:
            DatasetError: a folder is in the way.
        """
        if self.is_in_place:
            return self
        for place in filter(Path.is_dir, self.results):
            raise DatasetError(
                f"{place}: found a folder, expected a file or nothing there; move it away"
            )
        return replace(self, staged=True)

    def take_places(self) -> None:
        """Give the staged files their names, in the place of what is there."""
        for place in self.results if self.staged else ():
            try:
                os.replace(self.file(place), place)
            except OSError as error:
                raise OutputError(error.errno, error.strerror, str(place)) from error

    def drop(self) -> None:
        """Remove staged files that have not taken their places."""
        for place in self.results if self.staged else ():
            # A read-only file system refuses even that.
            with suppress(OSError):
                self.file(place).unlink()

    def convert(self) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) raw values and (H, W) vocabulary ids, both resized if the image is."""
        raw = self.origin.read(self.source)
        ids = self.origin.label_map(raw, self.source)
        return self._resize(raw), self._resize(ids)

    def _resize(self, label: np.ndarray) -> np.ndarray:
        size = _reduced_size(label.shape[0], label.shape[1], self.short_side)
        if size == (label.shape[1], label.shape[0]):
            return label
        kept = label if label.dtype in (np.uint8, np.uint16) else label.astype(np.uint16)
        return cv2.resize(kept, size, interpolation=cv2.INTER_NEAREST)


def _reduced_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(width, height) with the short side at most `short_side`, if that is not 0."""
    short = min(height, width)
    if not short_side or short <= short_side:
        return width, height
    long = round(max(height, width) / short * short_side)
    return (long, short_side) if width >= height else (short_side, long)


def make_label(task: Task) -> bool:
    """Write the label, and the image if it is a copy, unless it is there; True for a new label."""
    if task.image_source and not task.file(task.image).exists():
        pixels = read_image(task.image_source)
        size = _reduced_size(pixels.shape[0], pixels.shape[1], task.short_side)
        smaller = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
        _write(task, task.image, _encoded(smaller, format="JPEG", quality=95))
    if task.file(task.output).exists():
        return False
    _, ids = task.convert()
    _check(ids, task.source, task)
    if task.origin.link and task.source.suffix == task.output.suffix:
        _link(task.source, task.file(task.output))
    elif task.output.suffix == ".tif":
        _write(task, task.output, _encoded(ids, format="TIFF", compression="tiff_adobe_deflate"))
    else:
        _write(task, task.output, _encoded(ids, format="PNG"))
    return True


def _write(task: Task, place: Path, content: bytes) -> None:
    """Write a result; an error names its place, also where it waits beside that."""
    file = task.file(place)
    try:
        write_atomic(file, content)
    except OutputError as error:
        named = str(place) if error.filename == str(file) else error.filename
        raise OutputError(error.errno, error.strerror, named) from error


def compare_label(task: Task) -> None:
    """Refuse a label that somebody else made and that is not what this script would write."""
    if task.is_in_place:
        return
    raw, ours = task.convert()
    theirs = read_label(task.output)
    differ = ours != theirs if ours.shape == theirs.shape else np.ones_like(ours, dtype=bool)
    if task.origin.void is not None and ours.shape == theirs.shape:
        differ &= raw != task.origin.void
    if differ.any():
        y, x = np.unravel_index(np.argmax(differ), differ.shape)
        found = theirs[y, x] if ours.shape == theirs.shape else f"{theirs.shape} (height, width)"
        raise DatasetError(
            f"{task.output}: found {found} at ({x},{y}), expected {ours[y, x]} from {task.source}; "
            "another converter wrote these labels with other ids: move the folder away"
        )


def check_label_file(task: Task) -> dict[int, int]:
    """Read a finished label and refuse unexpected sizes and values; pixels by value."""
    path = task.file(task.output)
    label = read_label(path)
    try:
        # A staged file goes if it is refused: what is to be mended is its source.
        _check(label, task.source if task.staged else path, task)
    except DatasetError as error:
        if task.staged or task.is_in_place or task.origin.link:
            raise
        made_of = f"it was made of {task.source}: mend that first, then pass --overwrite"
        raise DatasetError(f"{error}; {made_of}") from error
    counts = np.bincount(label.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _check(label: np.ndarray, named: Path, task: Task) -> None:
    """Refuse a label of another size than its image, or with unexpected values."""
    image = task.file(task.image)
    check_label(label, named, task.origin.label_map.vocabulary, image_size(image), image)


def _encoded(pixels: np.ndarray, **options: object) -> bytes:
    # Into a real file: in memory, Pillow's TIFF encoder leaves the byte that pads an odd strip as
    # it finds it, and two runs would differ.
    try:
        with tempfile.TemporaryFile() as file:
            Image.fromarray(pixels).save(file, **options)
            file.seek(0)
            return file.read()
    except OSError as error:
        # Of a full disk, Pillow says no more than that it could not write.
        number, reason = error.errno or errno.ENOSPC, error.strerror or str(error)
        raise OutputError(number, reason, temporary_place()) from error


def _link(source: Path, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(source.resolve(), output.parent.resolve()))
    os.replace(temporary, output)
