"""Finding raw label files, lists of images, and the labels of other converters."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tagclip.data.datasets.builtin import read_benchmarks, vocabulary_json
from tagclip.data.datasets.image_list import plain_name, read_lines
from tagclip.data.datasets.label_map import LabelMap, recognize_order
from tagclip.data.datasets.manifest import LabelOrigin
from tagclip.data.image_io import read_image
from tagclip.data.label_io import read_label
from tagclip.errors import ConfigError, DatasetError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.text import listed, shortened

__all__ = [
    "README",
    "LabelSource",
    "converted_source",
    "find_folder",
    "list_files",
    "read_context_mat",
    "read_names",
    "read_object_numbers",
    "read_sbd_mat",
    "refuse_converted",
    "refuse_order",
]

logger = logging.getLogger("prepare")

README = f"see {Path(__file__).with_name('README.md')} for the downloads and the expected folders"
# Images that are looked at to find out the order of the classes.
_SAMPLES = 64


@dataclass(frozen=True)
class LabelSource:
    """Raw label files of a dataset.

    Attributes:
        folder: where they are.
        files: file by image name.
        read: reads a file as (H, W) integers; a function at module level.
        label_map: what the values mean, and the vocabulary to convert to.
        void: raw value of pixels that other converters label or not; None if there is none.
        link: the files hold the vocabulary's ids already and are linked, not converted.
    """

    folder: Path
    files: Mapping[str, Path]
    read: Callable[[Path], np.ndarray]
    label_map: LabelMap
    void: int | None = None
    link: bool = False

    @classmethod
    def of(
        cls,
        dataset: str,
        folder: Path,
        files: Mapping[str, Path],
        label_map: str,
        read: Callable[[Path], np.ndarray] = read_label,
        background: str = "",
        void: int | None = None,
    ) -> LabelSource:
        """Labels to be converted to the class list of a dataset of `benchmarks.json`.

        Args:
            dataset: its name.
            folder, files, read, void: see the attributes.
            label_map: name of a json in `label_maps`.
            background: class that values without one in the class list get; "" ignores them.
        """
        meaning = LabelMap.read(label_map, _vocabulary(dataset), background)
        return cls(folder, files, read, meaning, void)

    def origin(self, root: Path) -> LabelOrigin:
        """What the record of the labels says; ``root`` is that of all datasets."""
        # First as they are written: what lies below the root by a link belongs to it.
        for path in (os.path.abspath, os.path.realpath):
            folder = Path(path(self.folder))
            if folder.is_relative_to(path(root)):
                folder = folder.relative_to(path(root))
                break
        return LabelOrigin(folder.as_posix(), self.label_map.name)


def _vocabulary(dataset: str) -> Vocabulary:
    return Vocabulary.from_json(vocabulary_json(read_benchmarks()[dataset].vocabulary))


def list_files(folder: Path, *suffixes: str) -> dict[str, Path]:
    """Files of a folder by their name without suffix.

    Args:
        folder: a missing one has no files.
        suffixes: ends of file names, such as ".png", in any case; of two that fit, and of two
            files with the same name, the first counts.
    """
    found: dict[str, dict[str, Path]] = {suffix: {} for suffix in suffixes}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        suffix = next((end for end in suffixes if name.lower().endswith(end.lower())), None)
        if suffix and not name.startswith("."):
            found[suffix].setdefault(name[: -len(suffix)], folder / name)
    return {name: path for files in reversed(found.values()) for name, path in files.items()}


def find_folder(candidates: Iterable[Path], what: str) -> Path:
    """First folder that exists.

    Raises:
        DatasetError: none does.
    """
    candidates = list(candidates)
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DatasetError(
        f"no folder with {what}: looked for {' and '.join(map(str, candidates))}; {README}, or "
        "name the root of all datasets with --root"
    )


def read_names(path: Path) -> list[str]:
    """First word of each line of a list of images, without the folder JPEGImages and extension.

    Raises:
        DatasetError: the file is missing or empty, or names an image twice.
    """
    try:
        names = [plain_name(line.split()[0]) for line in read_lines(path)]
    except DatasetError as error:
        raise DatasetError(f"{error}; {README}") from error
    names = [name.rpartition("JPEGImages/")[2] for name in names]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DatasetError(
            f"{path}: found {shortened(twice[0], 80)!r} twice, expected each image once; {README}"
        )
    return names


def converted_source(
    dataset: str,
    folder: Path,
    files: Mapping[str, Path],
    orders: Sequence[str],
    order: str,
    reference: LabelSource,
    background: str = "",
) -> LabelSource:
    """Label files of another converter, with the order of their classes found out.

    Args:
        dataset, folder, files, background: see `LabelSource.of`.
        orders: label maps that the files may follow.
        order: one of them if the user says so; "" leaves it to the reference.
        reference: other labels of some of the images, or of none.

    Raises:
        DatasetError: the order cannot be told, or is not what the user says.
    """
    shared = _some(sorted(files.keys() & reference.files.keys()))
    pairs = ((read_label(files[n]), reference.read(reference.files[n])) for n in shared)
    candidates = {name: LabelMap.read(name, _vocabulary(dataset), background) for name in orders}
    found = candidates[recognize_order(pairs, reference.label_map, candidates, order)]
    logger.info(
        "Converted labels: class order %s, by %s",
        found.name,
        f"{len(shared)} images" if shared else "--order",
    )
    ids = [entry.id for entry in found.vocabulary.classes]
    is_same = all(value < len(found.table) and found.table[value] == value for value in ids)
    return LabelSource(folder, files, read_label, found, link=is_same)


def refuse_converted(source: LabelSource, images: Collection[str]) -> None:
    """Refuse labels in the place of raw ones that hold the ids of the class list already.

    They hold what raw ones never do, and nothing that is above those ids: both would be an accident
    of some files.

    Args:
        source: of labels that are taken for raw ones.
        images: names; other files may lie beside their labels.

    Raises:
        DatasetError: some of the files look so.
    """
    vocabulary = source.label_map.vocabulary
    ids = {entry.id for entry in vocabulary.classes}
    never = source.label_map.ignored - {vocabulary.ignore_label}
    values: set[int] = set()
    for name in _some(sorted(source.files.keys() & images)):
        values.update(np.unique(source.read(source.files[name])).tolist())
    found = [str(value) for value in sorted(values & never)]
    if found and values <= ids | {vocabulary.ignore_label}:
        raise DatasetError(
            f"{source.folder}: found {listed(found, 5)} among the values and none above "
            f"{max(ids)}, expected raw labels, which never have the first and often the others; "
            "they are converted already: move the folder away, and name it with --converted"
        )


def _some(names: list[str]) -> list[str]:
    """Not many more than `_SAMPLES`, evenly spread."""
    return names[:: max(len(names) // _SAMPLES, 1)]


def refuse_order(order: str) -> None:
    """Refuse --order where raw labels are read."""
    if order:
        raise ConfigError(
            f"--order is {order}, but raw labels are converted, whose order is known; name other "
            "labels with --converted, or leave --order out"
        )


def read_sbd_mat(path: Path) -> np.ndarray:
    """(H, W) integers 0..20 of a file of SBD's folder cls."""
    remedy = "name SBD's folder dataset, with cls, train.txt and val.txt, with --sbd"
    return _read_mat(path, "GTcls", "Segmentation", remedy)


def read_context_mat(path: Path) -> np.ndarray:
    """(H, W) integers 0..459 of a file of PASCAL Context's folder trainval."""
    remedy = "name the folder trainval of PASCAL Context with --mat"
    return _read_mat(path, "LabelMap", "", remedy)


def _read_mat(path: Path, variable: str, field: str, remedy: str) -> np.ndarray:
    """A variable of a file, or a field of it; ``remedy`` is for files of something else."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DatasetError(
            f"{path}: reading .mat files needs scipy; run: pip install scipy"
        ) from error
    try:
        tree = loadmat(path)
    except NotImplementedError as error:
        raise DatasetError(
            f"{path}: found MATLAB's format 7.3, expected 5 to 7.2, as in the download; extract "
            "the download again, or save the file with -v7"
        ) from error
    # What scipy raises on damaged files is not documented.
    except Exception as error:
        raise DatasetError(
            f"{path}: cannot read this label file ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); extract it again"
        ) from error
    found = [name for name in tree if not name.startswith("__")]
    label, what = tree.get(variable), variable
    if field and label is not None:
        what = f"{variable}.{field}"
        found = [f"{variable}.{name}" for name in label.dtype.names or ()]
        label = label[field].ravel()[0] if what in found and label.size else None
    if label is None:
        raise DatasetError(
            f"{path}: found the variables {listed(found, 5) or '(none)'}, expected {what}; "
            f"{remedy}, or extract the download again; {README}"
        )
    if label.ndim != 2 or label.dtype.kind not in "iu":
        raise DatasetError(
            f"{path}: found {label.dtype} values of shape {label.shape}, expected integers of "
            "shape (height, width); extract it again"
        )
    return label


def read_object_numbers(path: Path) -> np.ndarray:
    """(H, W) int32 object numbers of a file *_seg.png of ADE20K: red // 10 * 256 + green."""
    pixels = read_image(path).astype(np.int32)
    return pixels[:, :, 0] // 10 * 256 + pixels[:, :, 1]
