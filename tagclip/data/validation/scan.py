"""Full scan of a dataset: reads every image and label file, and goes on after a bad one."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tagclip.data.image_io import UnknownTiffError, is_dark, read_header, read_image
from tagclip.data.label_io import LabelColorError, read_label
from tagclip.data.label_notes import OtherWords
from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import Vocabulary

__all__ = ["EXAMPLES", "DatasetScan", "Sample", "SampleScan", "scan_sample"]

# Problems are counted in full and shown by this many examples.
EXAMPLES = 5
# Orientations under which height and width change places.
_ROTATED = (5, 6, 7, 8)


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


@dataclass
class SampleScan:
    """What was found in the files of one sample.

    Attributes:
        sample: the files.
        findings: (kind, path, text) of everything unusual; kinds are keys of
            `tagclip.data.validation.findings.KINDS`.
        image_size, label_size: (width, height), the image's upright; None if unreadable.
        image_mode, label_mode: Pillow's names, such as "RGB" and "P"; "" if unreadable;
            of labels that Pillow does not read, what the file says: "TIFF of 1 band of ...".
        orientation: the image's EXIF orientation, 1 if there is none.
        digest: of the image's pixels.
        counts: label value -> number of its pixels, ascending; only values that occur.
    """

    sample: Sample
    findings: list[tuple[str, str, str]] = field(default_factory=list)
    image_size: tuple[int, int] | None = None
    image_mode: str = ""
    orientation: int = 1
    digest: bytes = b""
    label_size: tuple[int, int] | None = None
    label_mode: str = ""
    counts: dict[int, int] = field(default_factory=dict)

    def note(self, kind: str, path: str, text: str = "") -> None:
        """Add a finding."""
        self.findings.append((kind, path, text))


def scan_sample(sample: Sample, vocabulary: Vocabulary, max_pixels: int = 0) -> SampleScan:
    """Read both files of a sample; damage becomes a finding.

    Args:
        sample: the files.
        vocabulary: of the label files, whose colours it may need.
        max_pixels: images with more pixels are findings; 0 sets no limit.
    """
    scan = SampleScan(sample)
    if sample.image is None:
        scan.note("lonely_label", sample.label)
    else:
        _scan_image(scan, sample.image, max_pixels)
    if sample.label is None:
        scan.note("lonely_image", sample.image)
    else:
        _scan_label(scan, sample.label, vocabulary)
    if scan.image_size and scan.label_size:
        _compare_sizes(scan)
    return scan


def _scan_image(scan: SampleScan, path: str, max_pixels: int) -> None:
    try:
        pixels = read_image(path, max_pixels=max_pixels)
    except DatasetError as error:
        scan.note("image_unreadable", path, _reason(error, path))
        return
    header = read_header(path)
    scan.image_mode, scan.orientation = header.mode, header.orientation
    if header.has_alpha:
        scan.note("image_alpha", path, header.mode)
    if header.further_bands:
        scan.note("image_bands", path, f"{3 + header.further_bands} bands")
    if header.is_16_bit and is_dark(pixels):
        scan.note("image_dark", path, f"brightest value {pixels.max()} of 255")
    elif header.is_16_bit:
        scan.note("image_16bit", path, header.mode)
    height, width = pixels.shape[:2]
    scan.image_size = width, height
    shape = f"{width}x{height} ".encode()
    scan.digest = hashlib.blake2b(shape + pixels.tobytes(), digest_size=16).digest()


def _scan_label(scan: SampleScan, path: str, vocabulary: Vocabulary) -> None:
    try:
        label = read_label(path, vocabulary)
    except DatasetError as error:
        kind = "label_channels" if isinstance(error, LabelColorError) else "label_unreadable"
        scan.note(kind, path, _reason(error, path))
        return
    if other := OtherWords.of_file(path, vocabulary.value_names):
        scan.note("moved_words" if other.has_moved else "other_words", path, str(other))
    scan.label_mode = _label_mode(path)
    scan.label_size = label.shape[::-1]
    if label.dtype == np.uint8:
        # In a fraction of the time of `np.unique`.
        pixels = np.bincount(label.reshape(-1))
        values = pixels.nonzero()[0]
        pixels = pixels[values]
    else:
        values, pixels = np.unique(label, return_counts=True)
    scan.counts = dict(zip(values.tolist(), pixels.tolist(), strict=True))


def _label_mode(path: str) -> str:
    try:
        return read_header(path).mode
    except UnknownTiffError as error:
        # Read all the same, but not by Pillow.
        return str(error.header)


def _compare_sizes(scan: SampleScan) -> None:
    size, orientation = scan.image_size, scan.orientation
    text = "label {}x{}, image {}x{}".format(*scan.label_size, *size)
    if scan.label_size != size:
        swapped = scan.label_size == size[::-1]
        text += f", EXIF orientation {orientation}" if orientation != 1 else ""
        scan.note("size_swapped" if swapped else "size", scan.sample.label, text)
    elif orientation in _ROTATED and size[0] != size[1]:
        scan.note("exif_fits", scan.sample.image, f"EXIF orientation {orientation}")
    elif orientation in (2, 3, 4, *_ROTATED):
        scan.note("exif_unclear", scan.sample.image, f"EXIF orientation {orientation}")


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
        self._groups: Counter[tuple[int, ...]] = Counter()
        self.modes = {"image": Counter(), "label": Counter()}
        self.sizes = {"image": Counter(), "label": Counter()}
        self.orientations: Counter[int] = Counter()
        self.digests: dict[bytes, list[str]] = defaultdict(list)
        self.keys: dict[str, bytes] = {}
        self._known = {*vocabulary.by_value, *vocabulary.ignored}

    @property
    def unknown(self) -> list[int]:
        """Label values that occur and mean nothing in the vocabulary, ascending."""
        return sorted(self.pixels.keys() - self._known)

    def total(self, values: Iterable[int]) -> int:
        """Number of pixels that have one of some values, such as those of a class."""
        return sum(self.pixels[value] for value in values)

    def files(self, values: tuple[int, ...]) -> int:
        """Number of label files with a pixel of `ClassEntry.ids` or `Vocabulary.ignored`."""
        return self._groups[values] if len(values) > 1 else self.images[values[0]]

    def add(self, scan: SampleScan) -> None:
        """Count one sample."""
        for finding in scan.findings:
            self.note(*finding)
        if scan.image_size:
            self._count_file("image", scan.image_mode, scan.image_size)
            self.digests[scan.digest].append(scan.sample.image)
            if scan.orientation != 1:
                self.orientations[scan.orientation] += 1
        if scan.sample.image is not None:
            self.keys[scan.sample.key] = scan.digest
        if scan.label_size:
            self._count_file("label", scan.label_mode, scan.label_size)
            self._count_values(scan.sample.label, scan.counts)

    def note(self, kind: str, path: str, text: str = "") -> None:
        """Count one finding."""
        self.found[kind] += 1
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append((path, text))

    def _count_file(self, what: str, mode: str, size: tuple[int, int]) -> None:
        self.modes[what][mode] += 1
        self.sizes[what][size] += 1

    def _count_values(self, path: str, counts: dict[int, int]) -> None:
        self.labels += 1
        self.pixels.update(counts)
        self.images.update(counts.keys())
        groups = (*(entry.ids for entry in self.vocabulary.classes), self.vocabulary.ignored)
        self._groups.update(g for g in groups if len(g) > 1 and not counts.keys().isdisjoint(g))
        unknown = sorted(counts.keys() - self._known)
        if unknown:
            shown = ", ".join(f"{value} ({counts[value]} pixels)" for value in unknown[:4])
            more = f" and {len(unknown) - 4} more values" if len(unknown) > 4 else ""
            self.note("unknown", path, shown + more)
        elif counts.keys() <= set(self.vocabulary.ignored):
            self.note("all_ignored", path)
