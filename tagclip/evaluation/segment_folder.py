"""The folder of ``tagclip bulk``, to be read: its rows, a table of them, label maps.

::

    from tagclip.evaluation.segment_folder import SegmentFolder

    folder = SegmentFolder("out")
    for row in folder.rows(["image_id", "unseen"]):
        ...
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tagclip.errors import DatasetError, VocabularyError
from tagclip.evaluation.saved_folder import image_finder
from tagclip.evaluation.segment_rows import (
    FORMATS,
    read_metadata,
    read_rows,
    read_table,
    require_pyarrow,
    row_labels,
)
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.run_lock import RunLock
from tagclip.utils.text import counted, error_text, listed
from tagclip.utils.untrusted import load_json

__all__ = [
    "MANIFEST",
    "PLANS",
    "ROWS",
    "VOCABULARY",
    "SegmentFolder",
    "is_segment_folder",
    "parse_plan",
    "shard_metadata",
    "shard_path",
]

logger = logging.getLogger(__name__)

MANIFEST, VOCABULARY, ROWS, PLANS = "manifest.json", "vocabulary.json", "segments", "shards"
_LISTED = 5
_RUN_AGAIN = "run tagclip bulk again"


def shard_path(name: str, file_format: str) -> Path:
    """The file of a shard's rows, below the folder of the run."""
    return Path(ROWS, f"{name}{FORMATS[file_format]}")


def shard_metadata(run: str, fingerprint: str) -> dict[str, str]:
    """What that file says about itself: where it differs, the shard is not finished.

    Args:
        run: sha256 of all that rows depend on, but their images.
        fingerprint: of these.
    """
    return {"tagclip.run": run, "tagclip.shard": fingerprint}


def parse_plan(text: str) -> Iterator[tuple[int, str, str]]:
    """Read the text of a shard's list in `PLANS`.

    Returns:
        Of each member its size in bytes, what says the sizes of the images that it names ("" if it
        names none, and of runs that did not look), and its id.

    Raises:
        ValueError: it is another kind of text.
    """
    for line in text.split("\n")[:-1]:
        sizes, name = line.split("\t", 1)
        size, _, images = sizes.partition(" ")
        yield int(size), images, name


def is_segment_folder(path: Path) -> bool:
    """Whether a folder is one of ``tagclip bulk``, damaged or not."""
    return (path / MANIFEST).is_file() and (path / ROWS).is_dir()


class SegmentFolder:
    """Rows of `tagclip.evaluation.segment_rows` in all finished shards of a run.

    It can be pickled, and read while the run goes on: it has the shards that were finished when it
    was made.

    Attributes:
        path: of the folder.
        manifest: content of its ``manifest.json``.
        vocabulary: the K classes.
        files: of the finished shards, in order.
        unfinished: names of the other shards.
        remedy: what to do about these.
    """

    def __init__(self, path: str | Path) -> None:
        """Look for the finished shards; a warning names the others.

        Raises:
            DatasetError: it is no such folder, or its manifest is damaged.
            VocabularyError: its vocabulary is.
            NotInstalledError: pyarrow is missing, for parquet files.
        """
        self.path = Path(path)
        try:
            self.manifest: dict[str, Any] = load_json((self.path / MANIFEST).read_text("utf-8"))
            run, rows = self.manifest["run"], self.manifest["shards"]
            if (file_format := self.manifest["format"]) not in FORMATS:
                raise ValueError(f"format {file_format!r:.40}")
            shards = {
                row["name"]: (
                    self.path / shard_path(row["name"], file_format),
                    shard_metadata(run, row["fingerprint"]),
                )
                for row in rows
            }
        except FileNotFoundError as error:
            raise DatasetError(
                f"{path}: found no {MANIFEST}, expected a folder that tagclip bulk wrote; name "
                "its --output"
            ) from error
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DatasetError(
                f"{self.path / MANIFEST}: found another or a damaged file ({error_text(error)}), "
                "expected that of tagclip bulk; run it again with the same --output"
            ) from error
        try:
            self.vocabulary = Vocabulary.from_json(self.path / VOCABULARY)
        except VocabularyError as error:
            raise VocabularyError(
                f"{error}; or run tagclip bulk again with the same --output, which writes it anew"
            ) from error
        self.files: list[Path] = []
        self.unfinished: list[str] = []
        for name, (file, metadata) in shards.items():
            if _is_finished(file, metadata):
                self.files.append(file)
            else:
                self.unfinished.append(name)
        who = RunLock.holder(self.path)
        self.remedy = f"wait until {who} has ended, which is at it" if who else _RUN_AGAIN
        if self.unfinished:
            logger.warning(
                "%s: %d of %s not finished, images left out: %s; %s", path, len(self.unfinished),
                counted(len(shards), "shard"), listed(self.unfinished, _LISTED), self.remedy,
            )  # fmt: skip

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Rows of all images, in the order of the input (see `read_rows`).

        Raises:
            DatasetError: a file is damaged, or there is no such column.
        """
        for file in self.files:
            yield from read_rows(file, columns)

    def table(self, columns: Sequence[str] | None = None) -> Any:
        """All rows as a ``pyarrow.Table``, in memory.

        Args:
            columns: see `read_rows`.

        Raises:
            DatasetError: no shard is finished, a file is damaged, or there is no such column.
            NotInstalledError: pyarrow is missing.
        """
        tables = [read_table(file, columns) for file in self.files]
        if not tables:
            raise DatasetError(f"{self.path}: found no finished shard, expected one; {self.remedy}")
        return require_pyarrow().concat_tables(tables)

    def row(self, image_id: str) -> dict[str, Any]:
        """The row of an image.

        Raises:
            DatasetError: there is none, or its file is damaged.
        """
        if image_id not in self._places:
            raise DatasetError(
                f"{self.path}: found no row of {image_id!r} among {len(self._places)} images, "
                "expected one; name the image as image_id does"
            )
        file, number = self._places[image_id]
        return next(read_rows(file, first=number))

    def labels(self, image_id: str) -> np.ndarray:
        """(H, W) int32 indices of the classes of an image, -1 for none.

        Raises:
            DatasetError: there is no row of it, it was not read, or its file is damaged.
        """
        try:
            return row_labels(self.row(image_id), self.vocabulary)
        except DatasetError as error:
            raise DatasetError(f"{self.path}: {error}") from error

    def match(self, images: Iterable[str]) -> dict[str, str]:
        """Find the rows of a dataset's images: by the end of their path, or by their name.

        Rows of other images are left out, with a warning.

        Args:
            images: files.

        Returns:
            ``image_id`` by file.

        Raises:
            DatasetError: an image has no row, or several; or a file of another size was segmented.
        """
        find, images = image_finder(images), list(images)
        found: dict[str, str] = {}
        for image_id in self._places:
            if (file := find(image_id)) is None:
                continue
            if file in found:
                raise DatasetError(
                    f"{self.path}: {found[file]} and {image_id} both may be {file}; run tagclip "
                    "bulk on the folder of the dataset's images alone"
                )
            found[file] = image_id
        if missing := [file for file in images if file not in found]:
            raise DatasetError(
                f"{self.path}: {len(missing)} of {len(images)} images have no row, such as "
                f"{listed(missing, _LISTED)}; run tagclip bulk on the folder of all of them"
            )
        self._refuse_others(found)
        if extra := len(self._places) - len(found):
            logger.warning("%s: %d rows are of no image of the dataset", self.path, extra)
        return found

    def _refuse_others(self, ids: Mapping[str, str]) -> None:
        """Refuse images of another dataset that have the same names.

        Args:
            ids: see `match`.
        """
        sizes: dict[str, int] = {}
        for file in self.files:
            # Where the lists were left behind, names must do.
            with suppress(OSError, ValueError):
                text = (self.path / PLANS / f"{file.stem}.txt").read_bytes().decode()
                # What was no file or not there has none.
                sizes |= {name: size for size, _, name in parse_plan(text) if size > 0}
        others = [
            f"{file} ({os.path.getsize(file)} bytes, not {sizes[image_id]})"
            for file, image_id in ids.items()
            if image_id in sizes
            and os.path.isfile(file)
            and os.path.getsize(file) != sizes[image_id]
        ]
        if others:
            raise DatasetError(
                f"{self.path}: {len(others)} of {len(ids)} images are called as those that were "
                f"segmented, but are other files, such as {listed(others, 2)}; name the dataset "
                "whose images these are, or run tagclip bulk on the folder of this one's"
            )

    @cached_property
    def _places(self) -> dict[str, tuple[Path, int]]:
        """File and number of the row of each image."""
        return {
            row["image_id"]: (file, number)
            for file in self.files
            for number, row in enumerate(read_rows(file, ["image_id"]))
        }


def _is_finished(file: Path, metadata: dict[str, str]) -> bool:
    try:
        return file.is_file() and metadata.items() <= read_metadata(file).items()
    except DatasetError as error:
        logger.warning("%s", error)
        return False
