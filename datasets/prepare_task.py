"""One label file: converting, writing, comparing, checking."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass
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
    """One label file to make from `source`; `image` is made from `image_source` if that is set."""

    source: Path
    output: Path
    image: Path
    origin: LabelSource
    image_source: Path | None
    short_side: int

    @property
    def is_in_place(self) -> bool:
        """Whether the label file is its own source."""
        return self.output.exists() and self.source.resolve() == self.output.resolve()

    @property
    def results(self) -> tuple[Path, ...]:
        """Files that the task makes."""
        return (self.output, self.image) if self.image_source else (self.output,)

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
    if task.image_source and not task.image.exists():
        pixels = read_image(task.image_source)
        size = _reduced_size(pixels.shape[0], pixels.shape[1], task.short_side)
        smaller = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
        write_atomic(task.image, _encoded(smaller, format="JPEG", quality=95))
    if task.output.exists():
        return False
    _, ids = task.convert()
    if task.origin.link and task.source.suffix == task.output.suffix:
        _link(task.source, task.output)
    elif task.output.suffix == ".tif":
        write_atomic(task.output, _encoded(ids, format="TIFF", compression="tiff_adobe_deflate"))
    else:
        write_atomic(task.output, _encoded(ids, format="PNG"))
    return True


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
    label = read_label(task.output)
    size = image_size(task.image)
    check_label(label, task.output, task.origin.label_map.vocabulary, size, task.image)
    counts = np.bincount(label.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


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
