"""What is on an image as one row of a table: parquet files, or tar files as webdataset reads them.

::

    image_id   string   names the image
    height     int32    in pixels; null, as all that follows but ``error``, where it was not read
    width      int32
    segments   list     of the classes on the image, in the order of the vocabulary:
      id         int32    label value
      name       string
      share      float    of the image's pixels, 0 to 1
      score      float    mean of its pixels
      trusty     float    share of its pixels with w >= 0.5, those taken for seen; null without map
      rle        binary   ``counts`` of COCO's compressed RLE; its ``size`` is [height, width]
    other      float    share of the image's pixels without a class
    unseen     float    share of the image's pixels with w < 0.5; null without a trusty map
    label_png  binary   label map as `tagclip.data.label_image` writes it, if it was asked for
    error      string   why the image was not read; null if it was

Equal rows make equal bytes, whoever writes them: types, order, compression and the length of row
groups are fixed, and there are no times. In a tar row NUMBER is ``NUMBER.json``, with text for
``rle``, and ``NUMBER.png``; its first member, ``__tagclip.json__``, has the metadata.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count, islice
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, BinaryIO

import numpy as np
from pycocotools import mask as coco_mask
from torch import Tensor

from tagclip.data.formats.annotation import rle_mask
from tagclip.data.label_image import label_png
from tagclip.errors import DatasetError, NotInstalledError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import open_atomic
from tagclip.utils.text import error_text, json_text, listed
from tagclip.utils.untrusted import load_json
from tagclip.utils.whole_tar import WholeTarInfo

__all__ = [
    "FORMATS",
    "ROW_GROUP",
    "SEEN_FROM",
    "RowWriter",
    "failed_row",
    "prediction_row",
    "read_metadata",
    "read_rows",
    "read_table",
    "require_pyarrow",
    "row_labels",
    "row_schema",
]

# Rows that are compressed, and read, together.
ROW_GROUP = 64
# Least P(seen) of a pixel that is taken for seen.
SEEN_FROM = 0.5
_COMPRESSION = "zstd"
_SEGMENTS = "segments."
_FIELDS = tuple(_SEGMENTS + name for name in ("id", "name", "share", "score", "trusty", "rle"))
_COLUMNS = (
    *("image_id", "height", "width", "segments", *_FIELDS),
    *("other", "unseen", "label_png", "error"),
)
# A name that webdataset takes for no sample.
_METADATA = "__tagclip.json__"
# There, too: whether rows have PNGs.
_LABELS = "labels"
_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError),
    tarfile.TarError,
)


def require_pyarrow() -> ModuleType:
    """Import pyarrow.

    Raises:
        NotInstalledError: it is missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise NotInstalledError(
            f"parquet files: found no pyarrow ({error_text(error)}), expected the package; run: "
            "pip install 'tagclip[bulk]'"
        ) from error
    return pyarrow


def row_schema(labels: bool, metadata: Mapping[str, str] | None = None) -> Any:
    """Types of the columns, as a ``pyarrow.Schema``.

    Args:
        labels: whether rows hold ``label_png``.
        metadata: of the file.

    Raises:
        NotInstalledError: pyarrow is missing.
    """
    pa = require_pyarrow()
    segment = pa.struct(
        {
            "id": pa.int32(),
            "name": pa.string(),
            "share": pa.float32(),
            "score": pa.float32(),
            "trusty": pa.float32(),
            "rle": pa.binary(),
        }
    )
    columns = {
        "image_id": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "segments": pa.list_(segment),
        "other": pa.float32(),
        "unseen": pa.float32(),
        **({"label_png": pa.binary()} if labels else {}),
        "error": pa.string(),
    }
    return pa.schema(columns, metadata=dict(metadata or {}))


def prediction_row(
    image_id: str, outputs: Mapping[str, Tensor], vocabulary: Vocabulary, labels: bool
) -> dict[str, Any]:
    """Make the row of an image.

    Args:
        image_id: its name.
        outputs: ``sem_seg_labels`` (H, W) indices of the K classes, -1 for none,
            ``sem_seg_scores`` (H, W) and, of models with a token, ``trusty`` (H, W).
        vocabulary: the K classes.
        labels: whether to keep the label map as a PNG, too.
    """
    indices = outputs["sem_seg_labels"].numpy()
    scores = outputs["sem_seg_scores"].float().numpy()
    seen = (outputs["trusty"] >= SEEN_FROM).numpy() if "trusty" in outputs else None
    flat = np.add(indices.ravel(), 1, dtype=np.int64)
    bins = len(vocabulary) + 1
    # Pixels of each class that are taken for unseen, and for seen; without a map all in the first.
    both = np.bincount(2 * flat + (0 if seen is None else seen.ravel()), minlength=2 * bins)
    seen_counts = both[1::2]
    counts = both[::2] + seen_counts
    sums = np.bincount(flat, scores.ravel(), minlength=bins)
    present = np.flatnonzero(counts[1:]).tolist()
    rows = [k + 1 for k in present]
    sizes = counts[rows]
    columns = (
        [vocabulary.classes[k] for k in present],
        _float32(sizes / flat.size),
        _float32(sums[rows] / sizes),
        [None] * len(present) if seen is None else _float32(seen_counts[rows] / sizes),
        _encode(indices, present),
    )
    segments = [
        {
            "id": entry.id,
            "name": entry.name,
            "share": share,
            "score": score,
            "trusty": trusty,
            "rle": rle,
        }
        for entry, share, score, trusty, rle in zip(*columns, strict=True)
    ]
    other, unseen = _float32(np.array([counts[0], flat.size - seen_counts.sum()]) / flat.size)
    row = {
        "image_id": image_id,
        "height": indices.shape[0],
        "width": indices.shape[1],
        "segments": segments,
        "other": other,
        "unseen": None if seen is None else unseen,
    }
    if labels:
        row["label_png"] = label_png(indices, vocabulary)
    return row | {"error": None}


def _encode(indices: np.ndarray, classes: Sequence[int]) -> list[bytes]:
    """RLE of each class on an (H, W) map, as `pycocotools.mask.encode`, from one pass for all."""
    height, width = indices.shape
    flat = indices.ravel(order="F")
    edges = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]))
    values = flat[edges[:-1]]
    # Beginning and end of every run, those of a class behind each other, in the order of the map.
    order = np.argsort(values, kind="stable")
    runs = np.stack((edges[:-1], edges[1:]), axis=1)[order]
    firsts = np.searchsorted(values[order], classes, "left").tolist()
    lasts = np.searchsorted(values[order], classes, "right").tolist()
    found = []
    for first, last in zip(firsts, lasts, strict=True):
        # Lengths of what is not the class and what is, in turn; the class may end the map.
        counts = np.append(runs[first:last], flat.size)
        counts[1:] -= counts[:-1].copy()
        counts = counts[:-1] if counts[-1] == 0 else counts
        found.append({"counts": counts, "size": [height, width]})
    return [rle["counts"] for rle in coco_mask.frPyObjects(found, height, width)] if found else []


def failed_row(image_id: str, error: str, labels: bool) -> dict[str, Any]:
    """Make the row of an image that could not be read.

    Args:
        image_id: its name.
        error: why, in one line.
        labels: as of the other rows.
    """
    nothing = ("height", "width", "segments", "other", "unseen", *(["label_png"] if labels else []))
    return {"image_id": image_id, **dict.fromkeys(nothing), "error": error}


def _float32(values: np.ndarray) -> list[float]:
    """The values that a parquet file holds, so that a tar holds them, too."""
    return values.astype(np.float32).tolist()


def row_labels(row: Mapping[str, Any], vocabulary: Vocabulary) -> np.ndarray:
    """Paint the segments of a row.

    Args:
        row: with ``height``, ``width`` and ``segments``.
        vocabulary: its classes.

    Returns:
        (H, W) int32 indices of classes, -1 for none.

    Raises:
        DatasetError: the image was not read, an id is no class or another one, or an RLE is damaged
            or of another size.
    """
    name = row["image_id"]
    if row["segments"] is None:
        raise DatasetError(f"{name}: was not read ({row.get('error')}), so it has no labels")
    size = row["height"], row["width"]
    indices = {(entry.id, entry.name): index for index, entry in enumerate(vocabulary.classes)}
    labels = np.full(size, -1, np.int32)
    for segment in row["segments"]:
        # Ids alone would give the pixels to other classes where somebody has edited the list.
        if (key := (segment["id"], segment["name"])) not in indices:
            raise DatasetError(
                f"{name}: found class id {key[0]}, {key[1]!r}, expected one of the vocabulary; "
                "run tagclip bulk again, which writes that anew"
            )
        try:
            mask = rle_mask(size, segment["rle"])()
        except DatasetError as error:
            raise DatasetError(f"{name}: {error}") from error
        labels[mask] = indices[key]
    return labels


class RowWriter:
    """Writes a file of rows, whole or not at all, a row group at a time.

    As a context: where it ends without an error, the file takes its name.

    Attributes:
        images: rows so far.
        failed: those of them with an error.
    """

    def __init__(
        self, path: str | Path, file_format: str, labels: bool, metadata: Mapping[str, str]
    ) -> None:
        """Say what is to be written.

        Args:
            path: of the file.
            file_format: a key of `FORMATS`.
            labels: whether rows hold ``label_png``.
            metadata: what the file says about itself, see `read_metadata`.
        """
        self.path, self.images, self.failed = Path(path), 0, 0
        self._open, self._labels, self._metadata = _SINKS[file_format], labels, dict(metadata)
        self._rows: list[Mapping[str, Any]] = []

    def __enter__(self) -> RowWriter:
        """Open a temporary file.

        Raises:
            OSError: it cannot be written.
            NotInstalledError: pyarrow is missing.
        """
        with ExitStack() as stack:
            file = stack.enter_context(open_atomic(self.path))
            self._sink = stack.enter_context(self._open(file, self._labels, self._metadata))
            self._stack = stack.pop_all()
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row.

        Raises:
            OSError: the file cannot be written.
        """
        self._rows.append(row)
        self.images += 1
        self.failed += row["error"] is not None
        if len(self._rows) == ROW_GROUP:
            self._flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._sink(self._rows)
            self._rows = []


Sink = Callable[[Sequence[Mapping[str, Any]]], None]


@contextmanager
def _parquet_sink(file: BinaryIO, labels: bool, metadata: Mapping[str, str]) -> Iterator[Sink]:
    pa = require_pyarrow()
    schema = row_schema(labels, metadata)
    # Damage then does not pass for other values.
    options = {"compression": _COMPRESSION, "write_page_checksum": True}
    with pa.parquet.ParquetWriter(file, schema, **options) as writer:
        yield lambda rows: writer.write_table(pa.Table.from_pylist(list(rows), schema))


@contextmanager
def _tar_sink(file: BinaryIO, labels: bool, metadata: Mapping[str, str]) -> Iterator[Sink]:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
            # Otherwise the archive keeps them all.
            archive.members.clear()

        def write(rows: Sequence[Mapping[str, Any]]) -> None:
            for row in rows:
                name, content = f"{next(numbers):06}", dict(row)
                png = content.pop("label_png", None)
                if content["segments"] is not None:
                    content["segments"] = [
                        {**segment, "rle": segment["rle"].decode("ascii")}
                        for segment in content["segments"]
                    ]
                add(f"{name}.json", json_text(content).encode())
                if png is not None:
                    add(f"{name}.png", png)

        numbers = count()
        add(_METADATA, json_text({**metadata, _LABELS: labels}).encode())
        yield write


_SINKS = {"parquet": _parquet_sink, "webdataset": _tar_sink}
# Of a format, the suffix of its files.
FORMATS = {"parquet": ".parquet", "webdataset": ".tar"}


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read what a file of `RowWriter` says about itself, without its rows.

    Raises:
        DatasetError: the file is missing, damaged or another kind of file.
        NotInstalledError: a parquet file without pyarrow.
    """
    if Path(path).suffix == FORMATS["webdataset"]:
        with _damage(path), tarfile.open(path, "r:") as archive:
            content = _tar_metadata(archive)
            content.pop(_LABELS)
            return content
    parquet = require_pyarrow().parquet
    with _damage(path):
        metadata = parquet.read_schema(path).metadata or {}
        # What pyarrow adds of its own.
        return {k.decode(): v.decode() for k, v in metadata.items() if k != b"ARROW:schema"}


def read_rows(
    path: str | Path, columns: Sequence[str] | None = None, first: int = 0
) -> Iterator[dict[str, Any]]:
    """Read the rows of a file of `RowWriter`, a row group at a time.

    Args:
        path: of the file.
        columns: names, in any order; ``segments.name`` and the like leave out the other fields of
            segments, which saves most of the reading. None: all.
        first: number of the row to begin with.

    Raises:
        DatasetError: the file is missing, damaged or another kind of file, or has no such column.
        NotInstalledError: a parquet file without pyarrow.
    """
    if Path(path).suffix == FORMATS["webdataset"]:
        rows = islice(_tar_rows(path, columns), first, None)
    else:
        rows = _parquet_rows(path, columns, first)
    with _damage(path):
        if columns is None:
            yield from rows
            return
        names, fields = _top_level(columns), _segment_fields(columns)
        for row in rows:
            if fields and row["segments"] is not None:
                row["segments"] = [{name: s[name] for name in fields} for s in row["segments"]]
            yield {name: row[name] for name in names}


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> Any:
    """Read a file of `RowWriter` as a ``pyarrow.Table``; see `read_rows`.

    Raises:
        DatasetError: see `read_rows`.
        NotInstalledError: pyarrow is missing.
    """
    pa = require_pyarrow()
    if Path(path).suffix == FORMATS["webdataset"]:
        rows = list(read_rows(path, columns))
        with _damage(path), tarfile.open(path, "r:") as archive:
            schema = row_schema(_tar_metadata(archive)[_LABELS])
        return pa.Table.from_pylist(rows, _chosen(schema, columns))
    with _damage(path), _open_parquet(path) as file:
        found = file.read(_parquet_columns(path, file, columns), use_threads=False)
        schema = _chosen(found.schema.remove_metadata(), columns)
        return found.select(schema.names).cast(schema)


def _chosen(schema: Any, columns: Sequence[str] | None) -> Any:
    """The types of columns, in their order."""
    if columns is None:
        return schema
    pa = require_pyarrow()
    fields = [schema.field(name) for name in _top_level(columns)]
    if chosen := _segment_fields(columns):
        whole = schema.field("segments").type.value_type
        kind = pa.list_(pa.struct([whole.field(name) for name in chosen]))
        fields = [pa.field("segments", kind) if f.name == "segments" else f for f in fields]
    return pa.schema(fields)


def _top_level(columns: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.split(".")[0] for name in columns))


def _segment_fields(columns: Sequence[str]) -> list[str]:
    """The fields of segments that are asked for; [] for all."""
    if "segments" in columns:
        return []
    return [name.removeprefix(_SEGMENTS) for name in columns if name.startswith(_SEGMENTS)]


def _check_columns(path: str | Path, columns: Sequence[str], labels: bool) -> None:
    known = [name for name in _COLUMNS if labels or name != "label_png"]
    for name in columns:
        if name not in known:
            raise DatasetError(
                f"{path}: found no column {name!r}, expected {', '.join(known)}; mend the name"
            )


@contextmanager
def _open_parquet(path: str | Path) -> Iterator[Any]:
    """Open a file of our columns, whose pages are checked as they are read."""
    parquet = require_pyarrow().parquet
    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        if not file.schema_arrow.equals(row_schema("label_png" in names)):
            raise ValueError(f"columns {listed(names, 9)}")
        yield file


def _parquet_columns(
    path: str | Path, file: Any, columns: Sequence[str] | None
) -> list[str] | None:
    """Columns as pyarrow takes them, which passes over those that it does not find."""
    if columns is None:
        return None
    _check_columns(path, columns, "label_png" in file.schema_arrow.names)
    return [name.replace(_SEGMENTS, f"{_SEGMENTS}list.element.") for name in columns]


def _parquet_rows(
    path: str | Path, columns: Sequence[str] | None, first: int
) -> Iterator[dict[str, Any]]:
    with _open_parquet(path) as file:
        start, skipped = divmod(first, ROW_GROUP)
        rows = (
            row
            for batch in file.iter_batches(
                ROW_GROUP,
                row_groups=range(start, file.num_row_groups),
                columns=_parquet_columns(path, file, columns),
                use_threads=False,
            )
            for row in batch.to_pylist()
        )
        yield from islice(rows, skipped, None)


def _tar_metadata(archive: tarfile.TarFile) -> dict[str, Any]:
    member = archive.next()
    if member is None or member.name != _METADATA:
        raise ValueError(f"{_METADATA} is not its first member")
    return load_json(archive.extractfile(member).read().decode())


def _tar_rows(path: str | Path, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    with tarfile.open(path, "r:", tarinfo=WholeTarInfo) as archive:
        labels = _tar_metadata(archive)[_LABELS]
        _check_columns(path, columns or (), labels)
        names = {name for name in _COLUMNS if "." not in name} - {"label_png"}
        row = None
        for member in archive:
            content = archive.extractfile(member).read()
            archive.members.clear()
            if member.name == _METADATA:
                continue
            if member.name.endswith(".png"):
                row["label_png"] = content
                continue
            if row is not None:
                yield row
            row = load_json(content.decode())
            if row.keys() != names:
                raise ValueError(f"{member.name} has {listed(list(row), 9)}")
            error = row.pop("error")
            row |= {**({"label_png": None} if labels else {}), "error": error}
            for segment in row["segments"] or ():
                segment["rle"] = segment["rle"].encode("ascii")
        if row is not None:
            yield row
        # Zeros from some row on look like an end.
        whole = -(-(archive.offset + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE)
        if (size := os.path.getsize(path)) != whole * tarfile.RECORDSIZE:
            raise ValueError(f"{size} bytes, but rows of {archive.offset}")


@contextmanager
def _damage(path: str | Path) -> Iterator[None]:
    """Put what readers say of a file into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such file; run tagclip bulk again") from error
    except _DAMAGE as error:
        raise DatasetError(
            f"{path}: found another or a damaged file ({error_text(error)}), expected one of "
            "tagclip bulk; remove it and run that again"
        ) from error
