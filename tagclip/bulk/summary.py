"""The page of a bulk run: how much of each class there is, some images with it, and what failed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tagclip.bulk.manifest import SUMMARY, BulkSettings, writing_output
from tagclip.bulk.members import shard_images
from tagclip.bulk.shards import Shard
from tagclip.data.image_io import read_image
from tagclip.errors import DatasetError
from tagclip.evaluation.segment_folder import SegmentFolder
from tagclip.evaluation.segment_rows import FORMATS, read_rows, row_labels
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import write_atomic
from tagclip.utils.quiet import silence
from tagclip.visualization.html_page import render
from tagclip.visualization.panels import encode_jpeg, fit, legend_notes
from tagclip.visualization.segments import draw_segments, marked_names

__all__ = ["write_summary"]


# Of what is listed or drawn; the page stays below some megabytes whatever the run.
_FAILURES, _CLASSES, _LEAST_SEEN = 50, 12, 6
# Longer side of a picture, in pixels.
_SIZE = 352
_COLUMNS = (
    *("image_id", "height", "width", "other", "unseen", "error"),
    *(f"segments.{name}" for name in ("id", "share", "score", "trusty")),
)


class _Place(NamedTuple):
    """Where the row of an image is."""

    file: Path
    number: int


@dataclass
class _Counts:
    """Sums over rows, and the images that stand out.

    Attributes:
        classes: K.
        sums: (K + 1, 3) float64 pixels, and these times score and trusty share; "other" is last.
        holders: (K,) images with each class.
        images, pixels: of all rows, and of those without error.
        failed: rows with an error.
        failures: the first of these errors.
        largest: share and place of the image with the largest share of each class.
        unseen: share and place of the images with the largest unseen share, largest first.
    """

    classes: int
    images: int = 0
    failed: int = 0
    pixels: int = 0
    failures: list[str] = field(default_factory=list)
    largest: dict[int, tuple[float, _Place]] = field(default_factory=dict)
    unseen: list[tuple[float, _Place]] = field(default_factory=list)
    has_trusty: bool = False

    def __post_init__(self) -> None:
        self.sums = np.zeros((self.classes + 1, 3))
        self.holders = np.zeros(self.classes, np.int64)

    def add(self, row: dict[str, Any], place: _Place, index_of: dict[int, int]) -> None:
        """Count a row; of equal images the first stands out."""
        self.images += 1
        if row["error"] is not None:
            self.failed += 1
            if len(self.failures) < _FAILURES:
                self.failures.append(row["error"])
            return
        pixels = row["height"] * row["width"]
        self.pixels += pixels
        self.sums[-1, 0] += row["other"] * pixels
        for segment in row["segments"]:
            k, share = index_of[segment["id"]], segment["share"]
            self.holders[k] += 1
            self.sums[k] += np.array([1, segment["score"], segment["trusty"] or 0]) * share * pixels
            if k not in self.largest or share > self.largest[k][0]:
                self.largest[k] = share, place
        if row["unseen"] is not None:
            self.has_trusty = True
            # A sort is stable: the first of equal ones stays.
            self.unseen = sorted([*self.unseen, (row["unseen"], place)], key=lambda x: -x[0])
            del self.unseen[_LEAST_SEEN:]


def write_summary(output: Path, shards: Sequence[Shard], settings: BulkSettings) -> Path:
    """Write ``summary.html`` of the finished shards of a run.

    Rows are read as a stream. Examples are read from their sources again, if these are still what
    they were. Equal runs make equal pages: there are no times in it and no place of the folder.

    Args:
        output: folder of the run.
        shards: all of the run, with the places of their members.
        settings: of the run.

    Returns:
        Path of the page.

    Raises:
        ConfigError: it cannot be written.
        DatasetError: a file of rows is damaged.
    """
    folder = SegmentFolder(output)
    vocabulary = folder.vocabulary
    counts = _count(folder)
    # What there is to say of these images was said when they were segmented.
    with silence(logging.WARNING):
        examples, missing = _examples(counts, folder, shards, settings)
    names = marked_names(vocabulary)
    page = render(
        "summary.html.j2",
        __package__,
        title=f"{counts.images:,} images, {len(vocabulary)} classes",
        images=counts.images,
        failed=counts.failed,
        failures=counts.failures,
        shards=len(shards),
        unfinished=folder.unfinished[:_FAILURES],
        unfinished_count=len(folder.unfinished),
        inputs=folder.manifest["inputs"][:_FAILURES],
        has_trusty=counts.has_trusty,
        rows=_class_rows(counts, names, vocabulary),
        other=100 * counts.sums[-1, 0] / max(counts.pixels, 1),
        notes=legend_notes(vocabulary),
        examples=examples,
        missing=missing,
        suffix=FORMATS[settings.format],
        labels=settings.labels,
        fingerprints=folder.manifest["fingerprints"],
        version=folder.manifest["tagclip"],
    )
    with writing_output(output):
        path = output / SUMMARY
        if not path.is_file() or path.read_bytes() != page.encode():
            write_atomic(path, page)
    return output / SUMMARY


def _count(folder: SegmentFolder) -> _Counts:
    counts = _Counts(len(folder.vocabulary))
    index_of = {entry.id: k for k, entry in enumerate(folder.vocabulary.classes)}
    for file in folder.files:
        for number, row in enumerate(read_rows(file, _COLUMNS)):
            counts.add(row, _Place(file, number), index_of)
    return counts


def _class_rows(
    counts: _Counts, names: Sequence[str], vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """What the table says of each class, largest first."""
    pixels = counts.sums[:-1, 0]
    whole = max(counts.pixels, 1)
    return [
        {
            "name": names[k],
            "color": vocabulary.colors[k].tolist(),
            "percent": 100 * pixels[k] / whole,
            "images": int(counts.holders[k]),
            "score": counts.sums[k, 1] / pixels[k] if pixels[k] else None,
            "trusty": 100 * counts.sums[k, 2] / pixels[k] if pixels[k] else None,
        }
        for k in np.argsort(-pixels, kind="stable").tolist()
    ]


def _examples(
    counts: _Counts, folder: SegmentFolder, shards: Sequence[Shard], settings: BulkSettings
) -> tuple[list[dict[str, Any]], list[str]]:
    """Pictures of the images that stand out, and why others could not be drawn."""
    names, captions = marked_names(folder.vocabulary), {}
    largest = sorted(counts.largest, key=lambda k: (-counts.holders[k], k))[:_CLASSES]
    for k in largest:
        share, place = counts.largest[k]
        captions.setdefault(place, []).append(f"most {names[k]}: {100 * share:.1f} %")
    for share, place in counts.unseen:
        captions.setdefault(place, []).append(f"unseen: {100 * share:.1f} %")
    rows = {place: next(read_rows(place.file, first=place.number)) for place in captions}
    examples, missing = {}, []
    for shard in shards:
        file = folder.path / settings.output_of(shard)
        wanted = {row["image_id"]: place for place, row in rows.items() if place.file == file}
        for image_id, image in _read_again(shard, settings, set(wanted)):
            row = rows[wanted[image_id]]
            if isinstance(image, str):
                missing.append(image)
            elif image.shape[:2] != (row["height"], row["width"]):
                missing.append(f"{image_id}: is another image now")
            else:
                labels = fit(row_labels(row, folder.vocabulary), _SIZE)
                picture = fit(image, _SIZE)
                drawn = draw_segments(picture, labels, folder.vocabulary)
                examples[wanted[image_id]] = {
                    "image_id": image_id,
                    "caption": captions[wanted[image_id]],
                    "pictures": {"image": encode_jpeg(picture), "segments": encode_jpeg(drawn)},
                }
    return [examples[place] for place in captions if place in examples], missing


def _read_again(
    shard: Shard, settings: BulkSettings, wanted: set[str]
) -> Iterator[tuple[str, np.ndarray | str]]:
    """(H, W, 3) RGB of images of a shard, or why there is none."""
    left = set(wanted)
    try:
        images = shard_images(shard, settings.column, settings.id_column) if wanted else iter(())
        for image in images:
            if image.id not in left:
                continue
            left.remove(image.id)
            try:
                if isinstance(image.content, DatasetError):
                    raise image.content
                yield image.id, read_image(image.content, name=image.id)
            except DatasetError as error:
                yield image.id, str(error)
            if not left:
                return
    except DatasetError as error:
        yield from ((image_id, f"{image_id}: {error}") for image_id in sorted(left))
        return
    yield from ((image_id, f"{image_id}: is no longer there") for image_id in sorted(left))
