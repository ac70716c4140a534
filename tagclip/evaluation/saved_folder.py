"""A folder in which an evaluation saves something of every image.

``index.json``, written last, says what the files are: without it they are not complete.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from tagclip.errors import ConfigError, TagCLIPError
from tagclip.evaluation.results import format_json, read_metrics
from tagclip.evaluation.run_folder import evaluation_command
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import probe_path, write_atomic
from tagclip.utils.text import error_text, utf8_text
from tagclip.utils.untrusted import load_json

__all__ = ["FolderKind", "FolderWriter", "ImageName", "SavedFolder", "image_finder", "image_names"]

_INDEX = "index.json"
# What the index says in every folder, as metrics.json does.
_COMMON = ("dataset", "images", "split", "vocabulary", "vocabulary_fingerprint")
# Of the run of metrics.json: which weights were evaluated. The file tells where nothing is trained.
_WEIGHTS = ("trained_sha256", "weights_sha256")


@dataclass(frozen=True)
class FolderKind:
    """What is saved.

    Attributes:
        name: what it is, and the folder's name.
        save, skip: key and value that save it, and that do without.
        pattern: path of an image's file in the folder, {} is the image.
        formats: values of "format" in the index.
        is_utf8: whether names of files are escaped (`utf8_text`): what reads them takes no others.
    """

    name: str
    save: str
    skip: str
    pattern: str
    formats: tuple[Any, ...]
    is_utf8: bool = False

    def file(self, image: ImageName) -> str:
        """Path of an image's file in the folder."""
        return self.pattern.format(utf8_text(image.stem) if self.is_utf8 else image.stem)

    @contextmanager
    def writing(self, folder: Path) -> Iterator[None]:
        """Say in one line why files cannot be written.

        Raises:
            ConfigError: instead of OSError.
        """
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"{folder}: {self.name} cannot be written ({error.strerror}); free space, "
                f"choose another folder (OUTPUT_DIR, --output), or {self.skip}"
            ) from error

    @contextmanager
    def reading(self, path: Path, *damages: type[Exception]) -> Iterator[None]:
        """Say in one line why a file cannot be read.

        Args:
            path: the file.
            damages: what its reader raises, besides the usual ones.

        Raises:
            ConfigError: instead of what reading and looking into a damaged file raises.
        """
        try:
            yield
        except FileNotFoundError as error:
            raise ConfigError(
                f"{path}: no such file, no complete {self.name}; evaluate again with {self.save}"
            ) from error
        except (OSError, ValueError, LookupError, TypeError, AttributeError, *damages) as error:
            raise ConfigError(
                f"{path}: found damaged {self.name} ({error_text(error)}); evaluate again with "
                f"{self.save}"
            ) from error


@dataclass(frozen=True)
class ImageName:
    """What an image is called in results, below the folder that all images share.

    Attributes:
        file: with its suffix.
        stem: without, unless another image differs in the suffix alone.
    """

    file: str
    stem: str


def image_names(files: Iterable[str]) -> dict[str, ImageName]:
    """Find names that are unique, hold no path of a machine and do not change with its order."""
    paths = {file: Path(os.path.abspath(file)) for file in files}
    root = os.path.commonpath([path.parent for path in paths.values()]) if paths else ""
    relative = {file: path.relative_to(root) for file, path in paths.items()}
    stems = Counter(path.with_suffix("") for path in relative.values())
    names = {}
    for file, path in relative.items():
        stem = path.with_suffix("")
        unique = stem if stems[stem] == 1 else path
        names[file] = ImageName(path.as_posix(), unique.as_posix())
    return names


def image_finder(images: Iterable[str]) -> Callable[[str], str | None]:
    """Make what finds an image by the end of its path, or by its bare name if no other has it.

    Args:
        images: files of a dataset.

    Returns:
        From a path, of whatever folder, to the one of these files that it means, or None.
    """
    ends: dict[str, str | None] = {}
    for image in images:
        parts = Path(image).as_posix().split("/")
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            ends[end] = None if end in ends else image

    def find(name: str) -> str | None:
        end = name.replace("\\", "/").removeprefix("./")
        return ends.get(end) or ends.get(os.path.basename(end))

    return find


class FolderWriter:
    """Writes what is saved of the images of one dataset; each process writes its own images."""

    kind: ClassVar[FolderKind]

    def __init__(self, folder: str | Path, images: Iterable[str], distributed: bool = True) -> None:
        """Write nothing yet.

        Args:
            folder: of an evaluation, which belongs to this class alone.
            images: files of the whole dataset.
            distributed: whether all processes write into the folder.
        """
        self._folder, self._names = Path(folder), image_names(images)
        self._distributed = distributed

    def start(self) -> None:
        """Remove what an earlier evaluation left; every process of the evaluation calls this.

        Raises:
            ConfigError: the folder cannot be written.
        """
        with self.kind.writing(self._folder):
            if self._folder.exists() and not (self._distributed and comm.get_rank()):
                # Before anything goes.
                probe_path(self._folder / _INDEX)
                # First: what a kill leaves is not complete.
                (self._folder / _INDEX).unlink(missing_ok=True)
                shutil.rmtree(self._folder)
            if self._distributed:
                comm.synchronize()

    def write(self, image: str, labels: np.ndarray, output: Mapping[str, Any]) -> None:
        """Write what is saved of one image.

        Args:
            image: its file.
            labels: (H, W) integers, the prediction.
            output: of the model.
        """
        raise NotImplementedError

    def finish(self, content: Mapping[str, Any]) -> None:
        """Write ``index.json``: in the main process, when all have written.

        Args:
            content: what ``metrics.json`` holds.

        Raises:
            ConfigError: a file cannot be written, or files of other machines are not here.
        """
        files = [file for file in map(self._file, self._names) if file.is_file()]
        # The result may be asked for twice.
        if len(files) != content["images"] and not (self._folder / _INDEX).is_file():
            raise ConfigError(
                f"{self._folder}: found {self.kind.name} of {len(files)} images, expected "
                f"{content['images']}; set an OUTPUT_DIR that all machines share"
            )
        with self.kind.writing(self._folder):
            index = {key: content[key] for key in _COMMON} | _weights(content["run"])
            index |= self._index(content, files)
            index.setdefault("classes", [entry["name"] for entry in content["classes"]])
            write_atomic(self._folder / _INDEX, format_json(index))

    def _file(self, image: str) -> Path:
        return self._folder / self.kind.file(self._names[image])

    def _index(self, content: Mapping[str, Any], files: Sequence[Path]) -> dict[str, Any]:
        """Complete the files; return what the index says besides, "format" for one."""
        raise NotImplementedError


@dataclass(frozen=True)
class SavedFolder:
    """What an evaluation saved.

    Attributes:
        folder: of this kind.
        index: content of ``index.json``.
        vocabulary: the K classes of the content.
    """

    kind: ClassVar[FolderKind]
    folder: Path
    index: dict[str, Any]
    vocabulary: Vocabulary
    _names: dict[str, ImageName] = field(repr=False)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        vocabulary: Vocabulary,
        images: Iterable[str],
        dataset: str = "",
    ) -> Self:
        """Read the index.

        Args:
            folder: of this kind.
            vocabulary: the K classes that its content should be of.
            images: files of the whole dataset.
            dataset: its registered name; "": that of the index.

        Raises:
            ConfigError: there is none, or it is not complete, damaged, of other classes, or of
                another dataset.
        """
        images = list(images)
        path = Path(folder) / _INDEX
        with cls.kind.reading(path):
            index = load_json(path.read_text(encoding="utf-8"))
            form, found = index["format"], str(index["vocabulary_fingerprint"])
            index["images"] = int(index["images"])
        if dataset:
            cls.check_dataset(folder, dataset, images)
        if form not in cls.kind.formats or found != vocabulary.fingerprint:
            raise ConfigError(
                f"{path}: found format {form!r} and class list {found[:12]}, expected "
                f"{' or '.join(map(str, cls.kind.formats))} and {vocabulary.fingerprint[:12]} of "
                f"{vocabulary.name}; evaluate again with {cls.kind.save}"
            )
        cls._check_index(folder, index, vocabulary)
        return cls(Path(folder), index, vocabulary, image_names(images))

    @classmethod
    def _check_index(
        cls, folder: str | Path, index: Mapping[str, Any], vocabulary: Vocabulary
    ) -> None:
        """Refuse what only a kind of its own can: nothing of most."""

    @classmethod
    def check_dataset(cls, folder: str | Path, dataset: str, images: Iterable[str]) -> None:
        """Refuse what was saved of another dataset: its images may well be called the same.

        Args:
            folder: of this kind.
            dataset: registered name.
            images: its files.

        Raises:
            ConfigError: the index is missing or damaged, or names a dataset that is not registered
                with these very images.
        """
        path = Path(folder) / _INDEX
        with cls.kind.reading(path):
            found = str(load_json(path.read_text(encoding="utf-8"))["dataset"])
        if found != dataset and not _has_images(found, images):
            raise ConfigError(
                f"{path}: found {cls.kind.name} of {found}, expected those of {dataset} (or of the "
                f"same images registered as {found}, too); name {found} as the dataset, or "
                f"evaluate {dataset} with {cls.kind.save}"
            )

    def has(self, image: str) -> bool:
        """Whether an image was evaluated."""
        return self._file(image).is_file()

    def evaluated(self, images: Sequence[str]) -> list[str]:
        """Those of the images that were evaluated.

        Args:
            images: files of the whole dataset, as given to `open`.

        Raises:
            ConfigError: more were: those are none of the dataset any more.
        """
        found, expected = list(filter(self.has, images)), self.index["images"]
        if len(found) < expected:
            raise ConfigError(
                f"{self.folder / _INDEX}: found {self.kind.name} of {expected} images, of which "
                f"the dataset lists {len(found)} now, expected all; put its list of images back, "
                f"or evaluate again with {self.kind.save}"
            )
        return found

    def _file(self, image: str) -> Path:
        return self.folder / self.kind.file(self._names[image])

    @classmethod
    def of_run(
        cls, run: Path, cfg: CfgNode, dataset: str, vocabulary: Vocabulary, images: Iterable[str]
    ) -> Self:
        """Open the folder of an evaluated run.

        Args:
            run: its OUTPUT_DIR.
            cfg: its config.
            dataset: registered name.
            vocabulary, images: see `open`.

        Raises:
            ConfigError: see `open`; where nothing was saved, or by an evaluation of other weights
                than ``metrics.json``, with the command that does.
        """
        folder = run / "inference" / dataset / cls.kind.name
        command = evaluation_command(run, cfg, dataset, cls.kind.save)
        if not (folder / _INDEX).is_file():
            raise ConfigError(f"{folder}: found no {cls.kind.name}; save them with: {command}")
        saved = cls.open(folder, vocabulary, images, dataset)
        evaluated = _weights(read_metrics(folder.with_name("metrics.json"))["run"])
        # Earlier versions recorded nothing: then it is taken for that of metrics.json.
        found = {key: saved.index[key] for key in _WEIGHTS if key in saved.index}
        if found and found != evaluated:
            raise ConfigError(
                f"{folder}: found {cls.kind.name} of {_describe(found)}, expected those of the "
                f"metrics.json beside them, {_describe(evaluated)}; save them again with: {command}"
            )
        return saved


def _weights(run: Mapping[str, Any]) -> dict[str, str | None]:
    """The first checksum that a run has, or that it has none."""
    key = next((key for key in _WEIGHTS if run.get(key)), _WEIGHTS[0])
    return {key: run.get(key)}


def _describe(weights: Mapping[str, str | None]) -> str:
    ((key, value),) = weights.items()
    return f"{key} {str(value or 'none')[:12]}"


def _has_images(dataset: str, images: Iterable[str]) -> bool:
    """Whether a dataset is registered, has all these images, and calls them the same."""
    if dataset not in DatasetCatalog.list():
        return False
    try:
        files = [sample["file_name"] for sample in DatasetCatalog.get(dataset)]
    # Its files need not be on this machine.
    except (TagCLIPError, OSError):
        return False
    theirs, asked = (
        {os.path.realpath(file): name for file, name in image_names(each).items()}
        for each in (files, images)
    )
    return asked.items() <= theirs.items()
