"""Anybody's predictions on disk: label files, score maps, COCO results, and our own of both kinds.

What each is read from knows the images that it has, and gives label maps of the dataset's class
list. Everything is picklable: files are read in processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pycocotools import mask as coco_mask

from tagclip.data.datasets.walk import files_below
from tagclip.data.formats.annotation import rle_mask
from tagclip.data.label_io import read_label
from tagclip.errors import DatasetError
from tagclip.evaluation.coco_json import number_images
from tagclip.evaluation.saved_folder import image_finder, image_names
from tagclip.evaluation.saved_predictions import SavedPredictions
from tagclip.evaluation.segment_folder import SegmentFolder
from tagclip.scoring import MERGES
from tagclip.scoring.matching import ClassMatch
from tagclip.utils.look_up import look_up
from tagclip.utils.text import error_text, listed
from tagclip.utils.untrusted import load_json

__all__ = [
    "ARRAY_TYPES",
    "LABEL_TYPES",
    "BulkPredictions",
    "CocoResults",
    "OwnPredictions",
    "PredictedLabels",
    "PredictionFiles",
    "coco_names",
    "coco_rows",
    "find_files",
    "find_saved",
    "is_part_of_saved",
    "is_saved_folder",
    "read_coco",
    "refuse_missing",
]

LABEL_TYPES = (".png", ".tif", ".tiff", ".bmp", ".gif")
ARRAY_TYPES = (".npy", ".npz")
_EXAMPLES = 5
_DAMAGE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError)


class PredictedLabels(Protocol):
    """Predictions of a dataset's images."""

    def read(self, image: str, size: tuple[int, int]) -> np.ndarray:
        """(H, W) int32 indices of the dataset's classes, -1 for no class.

        Args:
            image: file of the dataset.
            size: (height, width) of its label.

        Raises:
            DatasetError: the prediction is damaged, of another size, or holds other values.
        """


def find_files(folder: Path, images: Mapping[str, str], suffix: str = "") -> dict[str, Path]:
    """Find the one prediction file of every image.

    A file belongs to the image that has its path below the folder, without extension and
    ``suffix``; if no file does, to the image that has its name.

    Args:
        folder: of predictions, which may have folders below.
        images: file -> name in the dataset, without extension.
        suffix: what stands behind the image's name: "_pred" of 001_pred.png.

    Returns:
        Path by file of the image.

    Raises:
        DatasetError: an image has none or several, or a file belongs to no image.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; name the folder of the predictions")
    types = (*LABEL_TYPES, *ARRAY_TYPES)
    files = [path for path in files_below(folder) if path.suffix.lower() in types]
    if not files:
        raise DatasetError(f"{folder}: found no predictions, expected {', '.join(types)} files")
    keys = {path: path.relative_to(folder).with_suffix("").as_posix() for path in files}
    below = {file: name.stem for file, name in image_names(images).items()}
    # As in the dataset, below the images' common folder, by the bare name.
    ways = [(images, keys), (below, keys)]
    bare = {file: Path(file).stem for file in images}
    if len(set(bare.values())) == len(images):
        ways.append((bare, {path: path.stem for path in files}))
    best: dict[str, list[Path]] = {}
    for names, keys in ways:
        by_key: dict[str, list[Path]] = {}
        for path, key in keys.items():
            if key.endswith(suffix):
                by_key.setdefault(key.removesuffix(suffix), []).append(path)
        found = {file: by_key[key] for file, key in names.items() if key in by_key}
        if len(found) > len(best):
            best = found
    _refuse_unpaired(folder, images, files, best, suffix)
    return {file: paths[0] for file, paths in best.items()}


def _refuse_unpaired(
    folder: Path,
    images: Mapping[str, str],
    files: Sequence[Path],
    found: Mapping[str, list[Path]],
    suffix: str,
) -> None:
    for file, paths in found.items():
        if len(paths) > 1:
            raise DatasetError(
                f"{folder}: {paths[0].name} and {paths[1].name} are both predictions of {file}; "
                "remove one"
            )
    extra = sorted(set(files) - {path for paths in found.values() for path in paths})
    hint = "" if suffix else _suffix_hint(images.keys() - found.keys(), extra)
    advice = "predict them, too, into files that are called as the images"
    refuse_missing(folder, images, found, hint or advice)
    if extra:
        raise DatasetError(
            f"{folder}: {len(extra)} predictions are of no image of the dataset, such as "
            f"{listed([str(path) for path in extra], _EXAMPLES)}; remove them, or name the dataset "
            "that they are of"
        )


def refuse_missing(folder: Path, images: Iterable[str], found: Iterable[str], advice: str) -> None:
    """Refuse predictions of a part of the images.

    Args:
        folder: of the predictions.
        images: files of the dataset.
        found: those of them that have a prediction.
        advice: what to do, for the message.

    Raises:
        DatasetError: an image has none.
    """
    known, images = set(found), list(images)
    if missing := [file for file in images if file not in known]:
        raise DatasetError(
            f"{folder}: {len(missing)} of {len(images)} images have no prediction, such as "
            f"{listed(missing, _EXAMPLES)}; {advice}"
        )


def _suffix_hint(missing: Iterable[str], extra: Iterable[Path]) -> str:
    """The option that says what all files have behind the names of images; "" if nothing."""
    stems = sorted((Path(file).stem for file in missing), key=len, reverse=True)
    ends = Counter(
        next((path.stem.removeprefix(s) for s in stems if path.stem.startswith(s)), "")
        for path in extra
    )
    end, count = ends.most_common(1)[0] if ends else ("", 0)
    return f"all {count} files end in it: --suffix {end}" if end and len(ends) == 1 else ""


@dataclass(frozen=True)
class PredictionFiles:
    """Label files and arrays.

    Attributes:
        paths: by file of the image.
        match: of the values; a channel of a score map is the value that it stands at among
            ``channels``.
        channels: values of the channels of score maps, in order.
    """

    paths: Mapping[str, Path]
    match: ClassMatch
    channels: tuple[int, ...]

    def read(self, image: str, size: tuple[int, int]) -> np.ndarray:
        """See `PredictedLabels.read`."""
        path = self.paths[image]
        is_array = path.suffix.lower() in ARRAY_TYPES
        values = self._array(path, size) if is_array else read_label(path)
        _check_size(path, values.shape, size)
        return self._indices(path, values)

    @cached_property
    def _lut(self) -> tuple[np.ndarray, np.ndarray]:
        """The known values, ascending, and int32 index of each."""
        known = sorted(self.match.indices)
        indices = [self.match.indices[value] for value in known]
        return np.array(known), np.array(indices, dtype=np.int32)

    def _indices(self, path: Path, values: np.ndarray) -> np.ndarray:
        known, lut = self._lut
        place = np.searchsorted(known, values).clip(max=len(known) - 1)
        wrong = known[place] != values
        if wrong.any():
            y, x = np.unravel_index(np.argmax(wrong), wrong.shape)
            raise DatasetError(
                f"{path}: found value {values[y, x]} at ({x},{y}), expected "
                f"{listed(list(map(str, known.tolist())), 8)}; say what the values mean: --values "
                "ids or indices, --classes LIST"
            )
        return look_up(lut, place)

    def _array(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        try:
            content = np.load(path, allow_pickle=False)
            if path.suffix.lower() == ".npz":
                if len(content.files) != 1:
                    raise ValueError(f"{len(content.files)} arrays, expected one")
                content = content[content.files[0]]
        except _DAMAGE as error:
            raise DatasetError(
                f"{path}: found no array ({error_text(error)}), expected one of numbers; write it "
                "with numpy.save or numpy.savez"
            ) from error
        if content.ndim == 2 and content.dtype.kind in "iu":
            return content
        if content.ndim != 3 or content.dtype.kind not in "fiu":
            raise DatasetError(
                f"{path}: found {content.dtype} of shape {content.shape}, expected integer labels "
                "(H, W) or scores (K, H, W) or (H, W, K)"
            )
        return np.array(self.channels)[self._best(path, content, size)]

    def _best(self, path: Path, scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        count = len(self.channels)
        if count == 1:
            raise DatasetError(
                f"{path}: found scores of shape {scores.shape} for one class, by which every pixel "
                "is of that class; write labels (H, W) instead, with the ignore label elsewhere"
            )
        if scores.shape in ((1, *size), (*size, 1)) and scores.dtype.kind in "iu":
            raise DatasetError(
                f"{path}: found {scores.dtype} of shape {scores.shape}, expected integer labels "
                "(H, W); write them without the axis of length 1 (numpy.squeeze)"
            )
        first, last = scores.shape == (count, *size), scores.shape == (*size, count)
        if first and last:
            raise DatasetError(
                f"{path}: found scores of shape {scores.shape}, of which the classes may be first "
                "or last; write labels (H, W) instead"
            )
        if not (first or last):
            turned = scores.shape in ((count, *size[::-1]), (*size[::-1], count))
            raise DatasetError(
                f"{path}: found scores of shape {scores.shape}, expected {(count, *size)} or "
                f"{(*size, count)}"
                + ("; rows and columns are exchanged: transpose them" if turned else "")
                + ("" if turned else "; resize them to the image, one channel per class")
            )
        # nan wins every comparison, and of pixels without a finite best none was computed.
        best = scores.max(axis=(axis := 0 if first else 2))
        if not np.isfinite(best).all():
            what = "nan" if np.isnan(best).any() else f"{best[~np.isfinite(best)][0]} as the best"
            raise DatasetError(
                f"{path}: found {what} among the scores, expected finite ones; predict the image "
                "again"
            )
        return scores.argmax(axis=axis)


def _check_size(path: object, found: tuple[int, ...], size: tuple[int, int]) -> None:
    if found != tuple(size):
        turned = tuple(found[::-1]) == tuple(size)
        remedy = "turn it" if turned else "resize it to the image, without interpolation"
        raise DatasetError(
            f"{path}: found {found[1]}x{found[0]} pixels (width x height), expected "
            f"{size[1]}x{size[0]}{', rows and columns are exchanged' if turned else ''}; {remedy}"
        )


def find_saved(path: Path, classes: Path | None) -> Path | None:
    """Find the folder that says what predictions of an evaluation are.

    Args:
        path: that folder, or its labels.
        classes: the list that says so instead.

    Returns:
        The folder; None if these are no such predictions, or the list says what the labels are.
    """
    if is_saved_folder(path):
        return path
    is_part = path.is_dir() and is_part_of_saved(path)
    return path.resolve().parent if is_part and not classes else None


def is_saved_folder(folder: Path) -> bool:
    """Whether a folder is what an evaluation saved; other tools write an index.json, too."""
    if not (folder / "index.json").is_file():
        return False
    try:
        index = load_json((folder / "index.json").read_text(encoding="utf-8"))
    # A damaged one is refused by its reader.
    except (OSError, ValueError):
        return True
    return isinstance(index, dict) and "vocabulary_fingerprint" in index


def is_part_of_saved(path: Path) -> bool:
    """Whether a path is that of the files in such a folder, without what says what they are."""
    # As "." or by a link it may have any name.
    path = path.resolve()
    return path.name in ("labels", "sem_seg_predictions.json") and is_saved_folder(path.parent)


@dataclass(frozen=True)
class OwnPredictions:
    """What an evaluation of this project saved."""

    saved: SavedPredictions

    def read(self, image: str, size: tuple[int, int]) -> np.ndarray:
        """See `PredictedLabels.read`."""
        labels = self.saved.read(image)[0]
        _check_size(f"{self.saved.folder}: {image}", labels.shape, size)
        return labels


@dataclass(frozen=True)
class BulkPredictions:
    """What ``tagclip bulk`` wrote.

    Attributes:
        folder: of the run.
        ids: ``image_id`` by file of the image.
        match: of the indices of the run's classes.
    """

    folder: SegmentFolder
    ids: Mapping[str, str]
    match: ClassMatch

    def read(self, image: str, size: tuple[int, int]) -> np.ndarray:
        """See `PredictedLabels.read`."""
        labels = self.folder.labels(self.ids[image])
        _check_size(f"{self.folder.path}: {image}", labels.shape, size)
        indices = [self.match.indices[k] for k in range(len(self.folder.vocabulary))]
        return look_up(np.array([*indices, -1], dtype=np.int32), labels)


@dataclass(frozen=True)
class CocoResults:
    """Masks of a COCO json, merged to one label map.

    Attributes:
        path: the json, for messages.
        rows: masks by file of the image, in the order of the json.
        match: of the category ids.
        merge: one of `MERGES`.
        background: index of the class of pixels without a mask, -1 for no class.
    """

    path: Path
    rows: Mapping[str, list[dict[str, Any]]]
    match: ClassMatch
    merge: str
    background: int

    def read(self, image: str, size: tuple[int, int]) -> np.ndarray:
        """See `PredictedLabels.read`."""
        labels = np.full(size, self.background, dtype=np.int32)
        where = f"{self.path}: {image}"
        for row in self._ordered(image, where):
            index = self.match.indices.get(row["category_id"])
            if index is None:
                raise DatasetError(
                    f"{where}: found category {row['category_id']}, expected "
                    f"{listed(list(map(str, sorted(self.match.indices))), 8)}; say what the "
                    "categories mean: --values ids or indices, --classes LIST"
                )
            mask = _decode(row, where)
            _check_size(where, mask.shape, size)
            labels[mask] = index
        return labels

    def _ordered(self, image: str, where: str) -> list[dict[str, Any]]:
        """The masks in the order of painting; of equals the later lies above."""
        rows = self.rows.get(image, [])
        try:
            if self.merge == "highest-score":
                scores = [float(row["score"]) for row in rows]
                if np.isnan(scores).any():
                    raise ValueError("found nan as score")
                return [rows[place] for place in np.argsort(scores, kind="stable")]
            if self.merge == "largest-first":
                return sorted(rows, key=lambda row: -int(coco_mask.area(_rle(row))))
        except _DAMAGE as error:
            raise DatasetError(
                f"{where}: {error_text(error)}; --merge {self.merge} needs it of every mask: "
                f"add it, or choose {' or '.join(each for each in MERGES if each != self.merge)}"
            ) from error
        return rows


def _rle(row: Mapping[str, Any]) -> dict[str, Any]:
    """The run lengths of a row, which may be written as a list, as pycocotools takes them."""
    segment = row["segmentation"]
    is_list = isinstance(segment["counts"], list)
    return coco_mask.frPyObjects(segment, *segment["size"]) if is_list else segment


def _decode(row: Mapping[str, Any], where: str) -> np.ndarray:
    """(H, W) bool of a row."""
    try:
        return rle_mask(row["segmentation"]["size"], row["segmentation"]["counts"])()
    except (DatasetError, *_DAMAGE) as error:
        raise DatasetError(
            f"{where}: found a damaged mask ({error_text(error)}), expected an RLE with size and "
            "counts; write the json again"
        ) from error


def read_coco(path: Path) -> Any:
    """The content of a COCO json: an object, or a list of results.

    Raises:
        DatasetError: it is missing, or no such json.
    """
    try:
        content = load_json(path.read_text(encoding="utf-8"))
        rows = content if isinstance(content, list) else content["annotations"]
        for row in rows:
            if not {"category_id", "segmentation"} <= row.keys():
                raise ValueError("a result without category_id or segmentation")
            if not isinstance(row["segmentation"], dict):
                raise ValueError("a segmentation that is no RLE")
            if not isinstance(row["category_id"], int) or not isinstance(
                row.get("image_id", 0), int | str
            ):
                raise ValueError("a category_id or image_id that is no number")
        listing = content if isinstance(content, dict) else {}
        categories = [row["id"] for row in listing.get("categories", []) if row["name"]]
        images = [row["id"] for row in listing.get("images", []) if row["file_name"]]
        if len(set(categories)) < len(categories) or len(set(images)) < len(images):
            raise ValueError("an id of two categories or of two images")
    except _DAMAGE as error:
        raise DatasetError(
            f"{path}: found no COCO results ({error_text(error)}), expected a list of objects with "
            "image_id, category_id, an RLE as segmentation, and score"
        ) from error
    return content


def coco_names(content: Any) -> dict[int, str] | None:
    """Name by category id, if the json has categories."""
    rows = content.get("categories", []) if isinstance(content, dict) else []
    return {row["id"]: str(row["name"]) for row in rows} or None


def coco_rows(
    content: Any, path: Path, images: Mapping[str, str], numbers: Path | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Sort results by image.

    Args:
        content: of `read_coco`.
        path: its file, for messages.
        images: file -> name in the dataset.
        numbers: a COCO json whose ``images`` say which file has which id; None: that of the
            content, or else the number that the file is called.

    Returns:
        Results by file of the image; an image may have none.

    Raises:
        DatasetError: a result is of no image, or nothing says of which.
    """
    rows = content if isinstance(content, list) else content["annotations"]
    listing = content if isinstance(content, dict) else {}
    if numbers is not None:
        listing = _listing(numbers)
    find = image_finder(images)
    if listing.get("images"):
        ids = {row["id"]: find(str(row["file_name"])) for row in listing["images"]}
        twice = [file for file, n in Counter(filter(None, ids.values())).items() if n > 1]
        if twice:
            raise DatasetError(
                f"{numbers or path}: found several images called as {listed(twice, _EXAMPLES)}; "
                "write their paths below the dataset's folder as file_name"
            )
        missing = sorted(images.keys() - set(ids.values()))
        if missing:
            raise DatasetError(
                f"{numbers or path}: {len(missing)} of {len(images)} images of the dataset are not "
                f"in it, such as {listed(missing, _EXAMPLES)}; predict them, too"
            )
    else:
        names = {file: Path(file).name for file in images}
        ids = {number: file for file, number in number_images(list(names)).items()}
        stems = {Path(file).stem for file in names}
        are_numbers = len({int(stem) for stem in stems if stem.isdecimal()}) == len(names)
        if not are_numbers and not all("file_name" in row for row in rows):
            raise DatasetError(
                f"{path}: nothing says which image has which image_id, expected an object with "
                "images; name the json that was predicted on: --coco-images FILE"
            )
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = row.get("file_name")
        file = find(str(name)) if name else ids.get(row.get("image_id"))
        if file is None:
            raise DatasetError(
                f"{path}: found a result of image {name or row.get('image_id')!r}, which the "
                "dataset has not; name the dataset that it is of, or --coco-images FILE"
            )
        found.setdefault(file, []).append(row)
    # An object that lists its images says itself that nothing is on them.
    if not found and (isinstance(content, list) or not content.get("images")):
        raise DatasetError(
            f"{path}: found no result of an image of the dataset, expected {len(images)} images "
            "with some; name the json of their predictions"
        )
    return found


def _listing(path: Path) -> dict[str, Any]:
    try:
        content = load_json(path.read_text(encoding="utf-8"))
        return {"images": [{"id": r["id"], "file_name": r["file_name"]} for r in content["images"]]}
    except _DAMAGE as error:
        raise DatasetError(
            f"{path}: found no list of images ({error_text(error)}), expected a COCO json with "
            "images; name another"
        ) from error
