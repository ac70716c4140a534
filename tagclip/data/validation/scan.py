"""Full scan of a dataset: reads every image and label file, and goes on after a bad one."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from tagclip.data.label_io import read_header, read_image, read_label
from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import Vocabulary

__all__ = ["EXAMPLES", "DatasetScan", "Sample", "SampleScan", "scan_sample"]

# Problems are counted in full and shown by this many examples.
EXAMPLES = 5
# Orientations under which height and width change places.
_ROTATED = (5, 6, 7, 8)
_GRAY_16 = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Sample:
    """Files of one image; None where there is none.

    Attributes:
        key: name within the dataset, shared by image and label.
        image, label: paths.
    """

    key: str
    image: str | None
    label: str | None


@dataclass(frozen=True)
class SampleScan:
    """What was found in the files of one sample.

    Attributes:
        sample: the files.
        findings: (kind, path, text) of everything unusual; kinds are keys of
            `tagclip.data.validation.findings.KINDS`.
        image_size, label_size: (width, height), the image's upright; None if unreadable.
        image_mode, label_mode: Pillow's names, such as "RGB" and "P"; "" if unreadable.
        orientation: the image's EXIF orientation, 1 if there is none.
        digest: of the image's pixels.
        values, pixels: (n,) int64, the label values that occur, ascending, and how often.
    """

    sample: Sample
    findings: tuple[tuple[str, str, str], ...]
    image_size: tuple[int, int] | None = None
    image_mode: str = ""
    orientation: int = 1
    digest: bytes = b""
    label_size: tuple[int, int] | None = None
    label_mode: str = ""
    values: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def scan_sample(sample: Sample, max_pixels: int = 0) -> SampleScan:
    """Read both files of a sample; damage becomes a finding.

    Args:
        sample: the files.
        max_pixels: images with more pixels are findings; 0 sets no limit.
    """
    findings: list[tuple[str, str, str]] = []
    facts = {}
    if sample.image is None:
        findings.append(("lonely_label", sample.label, ""))
    else:
        facts |= _scan_image(sample.image, max_pixels, findings)
    if sample.label is None:
        findings.append(("lonely_image", sample.image, ""))
    else:
        facts |= _scan_label(sample.label, findings)
    image_size, label_size = facts.get("image_size"), facts.get("label_size")
    if image_size and label_size:
        _compare_sizes(sample, image_size, label_size, facts["orientation"], findings)
    return SampleScan(sample, tuple(findings), **facts)


def _scan_image(path: str, max_pixels: int, findings: list[tuple[str, str, str]]) -> dict:
    try:
        pixels = read_image(path, max_pixels=max_pixels)
    except DatasetError as error:
        findings.append(("image_unreadable", path, _reason(error, path)))
        return {}
    mode, orientation = read_header(path)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        findings.append(("image_alpha", path, mode))
    if mode in _GRAY_16:
        findings.append(("image_16bit", path, mode))
    height, width = pixels.shape[:2]
    shape = f"{width}x{height} ".encode()
    return {
        "image_size": (width, height),
        "image_mode": mode,
        "orientation": orientation,
        "digest": hashlib.blake2b(shape + pixels.tobytes(), digest_size=16).digest(),
    }


def _scan_label(path: str, findings: list[tuple[str, str, str]]) -> dict:
    try:
        label = read_label(path)
    except DatasetError as error:
        kind = "label_channels" if "single-channel" in str(error) else "label_unreadable"
        findings.append((kind, path, _reason(error, path)))
        return {}
    values, pixels = _count(label)
    height, width = label.shape
    return {
        "label_size": (width, height),
        "label_mode": read_header(path)[0],
        "values": values,
        "pixels": pixels,
    }


def _count(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if label.dtype != np.uint8:
        values, pixels = np.unique(label, return_counts=True)
        return values.astype(np.int64), pixels.astype(np.int64)
    counts = np.bincount(label.reshape(-1), minlength=256)
    values = counts.nonzero()[0]
    return values, counts[values]


def _compare_sizes(
    sample: Sample,
    image_size: tuple[int, int],
    label_size: tuple[int, int],
    orientation: int,
    findings: list[tuple[str, str, str]],
) -> None:
    text = "label {}x{}, image {}x{}".format(*label_size, *image_size)
    if label_size != image_size:
        swapped = label_size == image_size[::-1]
        text += f", EXIF orientation {orientation}" if orientation != 1 else ""
        findings.append(("size_swapped" if swapped else "size", sample.label, text))
    elif orientation in _ROTATED and image_size[0] != image_size[1]:
        findings.append(("exif_fits", sample.image, f"EXIF orientation {orientation}"))
    elif orientation in (2, 3, 4, *_ROTATED):
        findings.append(("exif_unclear", sample.image, f"EXIF orientation {orientation}"))


def _reason(error: DatasetError, path: str) -> str:
    return str(error).removeprefix(f"{path}: ")


class DatasetScan:
    """Adds up the scans of one dataset; memory grows by one digest per image.

    Attributes:
        name: of the dataset.
        vocabulary: its full class list.
        labels: number of label files that were read.
        found: kind -> number of findings.
        examples: kind -> the first few, as (path, text).
        pixels, images: label value -> pixels, and label files with at least one of them.
        modes, sizes: "image" and "label" -> how often each mode and (width, height) occurs.
        orientations: how often each EXIF orientation other than 1 occurs.
        digests: digest of an image's pixels -> paths, in order.
        keys: name of a sample -> digest of its image, b"" if unreadable.
    """

    def __init__(self, name: str, vocabulary: Vocabulary) -> None:
        self.name, self.vocabulary = name, vocabulary
        self.labels = 0
        self.found: Counter[str] = Counter()
        self.examples: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self.pixels: Counter[int] = Counter()
        self.images: Counter[int] = Counter()
        self.modes = {"image": Counter(), "label": Counter()}
        self.sizes = {"image": Counter(), "label": Counter()}
        self.orientations: Counter[int] = Counter()
        self.digests: dict[bytes, list[str]] = defaultdict(list)
        self.keys: dict[str, bytes] = {}
        self._known = {entry.id for entry in vocabulary.classes} | {vocabulary.ignore_label}

    @property
    def unknown(self) -> list[int]:
        """Label values that occur and mean nothing in the vocabulary, ascending."""
        return sorted(self.pixels.keys() - self._known)

    def add(self, scan: SampleScan) -> None:
        """Count one sample."""
        for kind, path, text in scan.findings:
            self.note(kind, path, text)
        if scan.image_size:
            self._count_file("image", scan.image_mode, scan.image_size)
            self.digests[scan.digest].append(scan.sample.image)
            if scan.orientation != 1:
                self.orientations[scan.orientation] += 1
        if scan.sample.image is not None:
            self.keys[scan.sample.key] = scan.digest
        if scan.label_size:
            self._count_file("label", scan.label_mode, scan.label_size)
            self._count_values(scan)

    def note(self, kind: str, path: str, text: str = "") -> None:
        """Count one finding."""
        self.found[kind] += 1
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append((path, text))

    def _count_file(self, what: str, mode: str, size: tuple[int, int]) -> None:
        self.modes[what][mode] += 1
        self.sizes[what][size] += 1

    def _count_values(self, scan: SampleScan) -> None:
        self.labels += 1
        counts = dict(zip(scan.values.tolist(), scan.pixels.tolist(), strict=True))
        self.pixels.update(counts)
        self.images.update(counts.keys())
        unknown = sorted(counts.keys() - self._known)
        if unknown:
            shown = ", ".join(f"{value} ({counts[value]} pixels)" for value in unknown[:4])
            more = f" and {len(unknown) - 4} more values" if len(unknown) > 4 else ""
            self.note("unknown", scan.sample.label, shown + more)
        elif counts.keys() == {self.vocabulary.ignore_label}:
            self.note("all_ignored", scan.sample.label)
