"""Registering folders of images and label files; nothing is read until it is asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from tagclip.config.checks import check_value
from tagclip.config.loading import advice_if_relative
from tagclip.data.datasets.image_list import ImageList
from tagclip.data.datasets.manifest import LabelManifest
from tagclip.data.datasets.selection import (
    UsableSamples,
    find_usable,
    paired_samples,
    skip_bad_samples,
)
from tagclip.data.datasets.walk import files_below
from tagclip.errors import ConfigError, DatasetError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import expand_path
from tagclip.utils.text import did_you_mean

__all__ = ["register_datasets", "register_folder_dataset", "register_zero_shot_sem_seg"]

logger = logging.getLogger(__name__)

_EXAMPLES = 5
# Of `register_folder_dataset`.
_IMAGE_EXTS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
# Arguments of `register_folder_dataset`.
_ENTRY_REQUIRED = ("name", "images", "labels", "vocabulary")
_ENTRY_KEYS = (*_ENTRY_REQUIRED, "image_list")


def register_zero_shot_sem_seg(
    name: str,
    image_root: str | Path,
    sem_seg_root: str | Path,
    vocabulary_json: str | Path,
    image_ext: str | Sequence[str] = "jpg",
    label_ext: str = "png",
    prepare_command: str = "",
    image_list: str | Path = "",
    manifest: str | Path = "",
) -> None:
    """Register a dataset for zero-shot semantic segmentation.

    Registering the same again does nothing. Images and labels are paired by their path below the
    two folders, without extension; files with other extensions are left out.

    Metadata of the dataset: `stuff_classes`, `stuff_colors`, `ignore_label` (read from the json
    when first used), `evaluator_type` "zero_shot_sem_seg", `vocabulary` (path of the json),
    `image_root`, `sem_seg_root`.

    Args:
        name: name in `DATASETS.TRAIN` and `DATASETS.TEST`.
        image_root: folder of images.
        sem_seg_root: folder of label files, whose values are class ids of the json.
        vocabulary_json: the class list (format: `tagclip.structures.vocabulary_json`).
        image_ext: extension without the dot, in any case, or several.
        label_ext: the same, one.
        prepare_command: command that makes the folders, for error messages.
        image_list: text file with one image per line (`ImageList`); other files are left out. "":
            every file of the folders.
        manifest: json of a prepare script (`LabelManifest`) without which the labels of the list
            are refused; "": unknown labels are taken.

    Raises:
        DatasetError: the name belongs to another dataset.
    """
    image_exts = (image_ext,) if isinstance(image_ext, str) else image_ext
    vocabulary_json = expand_path(vocabulary_json)
    files = _PairedFiles(
        name,
        expand_path(image_root),
        expand_path(sem_seg_root),
        tuple(extension.lower().lstrip(".") for extension in image_exts),
        label_ext.lower().lstrip("."),
        prepare_command,
        expand_path(image_list),
        expand_path(manifest),
    )
    if name in DatasetCatalog.list():
        old, old_json = DatasetCatalog[name], MetadataCatalog.get(name).get("vocabulary")
        if old != files or old_json != vocabulary_json:
            raise DatasetError(
                f"dataset name {name!r} is taken by another registration ({old}, vocabulary "
                f"{old_json}), found {files}, vocabulary {vocabulary_json}; choose another name"
            )
        return
    DatasetCatalog.register(name, files)
    MetadataCatalog[name] = _VocabularyMetadata(
        name=name,
        evaluator_type="zero_shot_sem_seg",
        vocabulary=vocabulary_json,
        image_root=files.image_root,
        sem_seg_root=files.label_root,
    )


def register_folder_dataset(
    name: str,
    images: str | Path,
    labels: str | Path,
    vocabulary: str | Path,
    image_list: str | Path = "",
) -> None:
    """Register a folder of images and one of png labels with the same stems.

    Args:
        name: name in `DATASETS.TRAIN` and `DATASETS.TEST`.
        images, labels: the folders, which may be one; images are jpg, jpeg, png, webp, bmp, tif or
            tiff, but not png where the labels are.
        vocabulary: vocabulary json.
        image_list: see `register_zero_shot_sem_seg`.

    Raises:
        DatasetError: the name belongs to another dataset.
    """
    register_zero_shot_sem_seg(name, images, labels, vocabulary, _IMAGE_EXTS, image_list=image_list)


def register_datasets(cfg: CfgNode) -> None:
    """Register what `DATASETS.FOLDER_DATASETS` describes; apply `DATASETS.ON_BAD_SAMPLE` to all.

    An entry holds the arguments of `register_folder_dataset`; the same again does nothing.

    Raises:
        ConfigError: an entry is no mapping of texts, a key is unknown or missing, a relative path
            is not there, or the policy is unknown.
        DatasetError: a name belongs to another dataset.
    """
    for index, entry in enumerate(cfg.DATASETS.FOLDER_DATASETS):
        where = f"DATASETS.FOLDER_DATASETS[{index}]"
        if not isinstance(entry, Mapping):
            raise ConfigError(
                f"{where} is {entry!r}, expected {{name: ..., images: ..., labels: ..., "
                "vocabulary: ...}"
            )
        for key, value in entry.items():
            if key not in _ENTRY_KEYS:
                hint = did_you_mean(key, _ENTRY_KEYS) or f"; known are {', '.join(_ENTRY_KEYS)}"
                raise ConfigError(f"{where}: unknown key {key!r}{hint}")
            if not isinstance(value, str) or not value:
                raise ConfigError(f"{where}: {key} is {value!r}, expected a text; put it in quotes")
            if (
                key != "name"
                and (advice := advice_if_relative(value))
                and not os.path.exists(value)
            ):
                raise ConfigError(f"{where}: {key} {value} is not there; check the path{advice}")
        missing = [key for key in _ENTRY_REQUIRED if key not in entry]
        if missing:
            raise ConfigError(f"{where}: {', '.join(missing)} is missing; add it")
        register_folder_dataset(**entry)
    policy = cfg.DATASETS.ON_BAD_SAMPLE
    check_value("DATASETS.ON_BAD_SAMPLE", policy)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        skip_bad_samples(name, cfg.INPUT.MAX_PIXELS if policy == "skip" else None)


class _VocabularyMetadata(Metadata):
    """Metadata whose class names and colours are read from the json when first used."""

    def __getattr__(self, key: str) -> Any:
        if key in ("stuff_classes", "stuff_colors", "ignore_label"):
            vocabulary = Vocabulary.from_json(self.vocabulary)
            # Metadata's own setter reads the old value first, which would come back here.
            self.__dict__.update(
                stuff_classes=vocabulary.names,
                stuff_colors=vocabulary.colors.tolist(),
                ignore_label=vocabulary.ignore_label,
            )
            return self.__dict__[key]
        return super().__getattr__(key)


@dataclass(frozen=True)
class _PairedFiles:
    """Lists a dataset when called; equal if it lists the same.

    With ``max_pixels`` bad samples are left out (`skip_bad_samples`); ``cache`` keeps what is left.
    """

    name: str
    image_root: str
    label_root: str
    image_exts: tuple[str, ...]
    label_ext: str
    prepare_command: str
    image_list: str
    manifest: str
    max_pixels: int | None = field(default=None, compare=False, repr=False)
    cache: list[UsableSamples] = field(default_factory=list, init=False, compare=False, repr=False)

    def __call__(self) -> list[dict[str, str]]:
        """One dict per image: "file_name", "sem_seg_file_name", "image_id"; sorted by image_id."""
        images, labels, unlisted = self._find()
        if self.image_list and self.manifest:
            self._check_manifest(len(images) + len(unlisted))
        if self.max_pixels is not None:
            return self._usable(images, labels, unlisted)
        if unlisted:
            line, remedy = next(iter(unlisted.items()))
            raise DatasetError(
                f"dataset {self.name}: {self.image_list}: {len(unlisted)} listed names without "
                f"image in {self.image_root}, such as {line!r}; {remedy}{self._advice}"
            )
        self._refuse_lonely(images, labels, "images", "label", self.label_root)
        self._refuse_lonely(labels, images, "labels", "image", self.image_root)
        return paired_samples(images, labels)

    def _usable(
        self, images: dict[str, str], labels: dict[str, str], unlisted: Mapping[str, str]
    ) -> list[dict[str, str]]:
        if not self.cache:
            vocabulary = Vocabulary.from_metadata(self.name)
            found = find_usable(self.name, images, labels, vocabulary, self.max_pixels)
            if unlisted:
                found.left_out["listed names without image"] = list(unlisted)
            self.cache.append(found)
        self.cache[0].report(self.name)
        return [dict(sample) for sample in self.cache[0].samples]

    def files_by_name(self) -> tuple[dict[str, str], dict[str, str]]:
        """Paths of images and of labels, also of those without a partner; checks nothing else."""
        return self._find()[:2]

    def _find(self) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        """Paths of images and of labels by name, and what is wrong with lines of the list."""
        exts, label_exts = self.image_exts, (self.label_ext,)
        if os.path.realpath(self.image_root) == os.path.realpath(self.label_root):
            exts = tuple(extension for extension in exts if extension != self.label_ext)
        images = self._list(self.image_root, exts, "image", self.label_root)
        labels = self._list(self.label_root, label_exts, "label", self.image_root)
        if not self.image_list:
            return images, labels, {}
        try:
            names, unlisted = ImageList(self.image_list, self.image_root).resolve(images, labels)
        except DatasetError as error:
            raise DatasetError(f"dataset {self.name}: {error}{self._advice}") from error
        images, labels = ({k: d[k] for k in names & d.keys()} for d in (images, labels))
        return images, labels, unlisted

    def _list(self, root: str, extensions: Sequence[str], what: str, other: str) -> dict[str, str]:
        """Path of every file, by its path below the root without extension.

        Files of the other root, if that is a folder below this one, are left out.
        """
        if not os.path.isdir(root):
            raise DatasetError(f"dataset {self.name}: no {what} folder {root}{self._advice}")
        files: dict[str, str] = {}
        below = os.path.relpath(other, root)
        inner = None if below.startswith(".") else os.path.join(root, below, "")
        for path in map(str, files_below(root)):
            stem, extension = os.path.splitext(path)
            if extension[1:].lower() not in extensions or (inner and path.startswith(inner)):
                continue
            key = os.path.relpath(stem, root).replace(os.sep, "/")
            if key in files:
                raise DatasetError(
                    f"dataset {self.name}: {files[key]} and {path} share the name {key!r}; move "
                    "one of them to another folder"
                )
            files[key] = path
        if not files:
            raise DatasetError(
                f"dataset {self.name}: no *.{' or *.'.join(extensions)} {what} in "
                f"{root}{self._advice}"
            )
        return files

    def _check_manifest(self, num_images: int) -> None:
        manifest = LabelManifest.read(self.manifest)
        found = ""
        if manifest is None:
            found = "no such file, so that nobody has checked what the label values mean"
        elif not manifest.complete:
            found = "the labels are not complete"
        elif manifest.num_images != num_images:
            found = f"is of {manifest.num_images} images, {self.image_list} names {num_images}"
        if found:
            raise DatasetError(f"dataset {self.name}: {self.manifest}: {found}{self._advice}")
        manifest.check_classes(
            Vocabulary.from_metadata(self.name), self.manifest, f"run: {self.prepare_command}"
        )
        if manifest.num_images != manifest.expected_images:
            logger.warning(
                "dataset %s: prepared from %d of %d images; results cannot be compared with others",
                self.name,
                manifest.num_images,
                manifest.expected_images,
            )

    def _refuse_lonely(
        self,
        files: Mapping[str, str],
        partners: Mapping[str, str],
        these: str,
        other: str,
        root: str,
    ) -> None:
        keys = files.keys() - partners.keys()
        if broken := [files[key] for key in sorted(keys) if not os.path.isfile(files[key])]:
            more = f", as are {len(broken) - 1} more of the {these}" if broken[1:] else ""
            raise DatasetError(
                f"dataset {self.name}: {broken[0]} is a broken link or no file{more}; mend or "
                "remove it"
            )
        if keys:
            examples = ", ".join(sorted(keys)[:_EXAMPLES])
            exts = self.image_exts if other == "image" else (self.label_ext,)
            stems = {os.path.join(root, key) for key in keys}
            found = (p for p in map(str, files_below(root)) if os.path.splitext(p)[0] in stems)
            unread = next(found, "")
            raise DatasetError(
                f"dataset {self.name}: {len(keys)} {these} without {other} in {root}, such as "
                f"{examples}; "
                + (f"{unread} is none of *.{', *.'.join(exts)}: save it as one; " if unread else "")
                + "add what is missing, or go on without them: DATASETS.ON_BAD_SAMPLE skip"
                + self._advice
            )

    @property
    def _advice(self) -> str:
        value = os.environ.get("DETECTRON2_DATASETS", "")
        variable = f" (DETECTRON2_DATASETS is {repr(value) if value else 'not set'})"
        if self.prepare_command:
            return f"{variable}; run: {self.prepare_command}"
        # A user's absolute path elsewhere has nothing to do with it.
        is_below = value and Path(self.image_root).is_relative_to(expand_path(value))
        hint = variable if is_below or not os.path.isabs(self.image_root) else ""
        return f"{hint}; check the path"
