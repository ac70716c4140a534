"""Registering folders of images and label files; nothing is read until it is asked for."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from tagclip.config.checks import check_value
from tagclip.config.loading import advice_if_relative
from tagclip.data.datasets.image_list import ImageList, PairList
from tagclip.data.datasets.manifest import LabelManifest
from tagclip.data.datasets.pairing import NamedFiles, Pairing
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

__all__ = [
    "LABEL_EXTS",
    "check_dataset_name",
    "datasets_of",
    "other_parts",
    "register_datasets",
    "register_folder_dataset",
    "register_zero_shot_sem_seg",
    "registered_parts",
]

logger = logging.getLogger(__name__)

_EXAMPLES = 5
# Of `register_folder_dataset`. Labels are jpg where nothing else is there.
_IMAGE_EXTS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
LABEL_EXTS = ("png", "gif", "bmp", "tif", "tiff")
_SPARE_LABEL_EXTS = ("jpg", "jpeg")
# Arguments of `register_folder_dataset`.
_ENTRY_REQUIRED = ("name", "images", "labels", "vocabulary")
_ENTRY_PATHS = ("images", "labels", "vocabulary", "image_list", "pairs")
_ENTRY_SUFFIXES = ("image_suffix", "label_suffix")
_CLASS_LIST = "class list"
_ENTRY_KEYS = ("name", *_ENTRY_PATHS, *_ENTRY_SUFFIXES)


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
    image_suffix: str = "",
    label_suffix: str = "",
    pairs: str | Path = "",
) -> None:
    """Register a dataset for zero-shot semantic segmentation.

    Registering the same again does nothing. Images and labels are paired by their path below the
    two folders, without suffix and extension; files with others are left out.

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
        image_suffix: what stands behind the name that an image and its label have in common:
            ``_image`` for 001_image.png beside 001_annotation.png. Other files are left out. It
            may end with an extension: ``_image.tif``.
        label_suffix: the same of the label, ``_annotation``.
        pairs: text file with an image and its label per line (`PairList`), in place of image_list;
            their names may be any.

    Raises:
        ConfigError: there are pairs and an image_list, or the name is none of a folder.
        DatasetError: the name belongs to another dataset.
    """
    image_exts = (image_ext,) if isinstance(image_ext, str) else image_ext
    files = _PairedFiles(
        name,
        NamedFiles("image", expand_path(image_root), tuple(map(_plain, image_exts)), image_suffix),
        NamedFiles("label", expand_path(sem_seg_root), (_plain(label_ext),), label_suffix),
        prepare_command,
        expand_path(image_list),
        expand_path(manifest),
        expand_path(pairs),
    )
    _register(files, expand_path(vocabulary_json))


def _plain(extension: str) -> str:
    return extension.lower().lstrip(".")


def check_dataset_name(name: str) -> None:
    """Refuse a name that is none of a folder: results of a dataset lie in one of that name.

    Raises:
        ConfigError: it is no such name.
    """
    if name in ("", ".", "..") or set(name) & {"/", "\0"}:
        good = re.sub(r"[/\0]+", "_", name).strip("._") or "my_val"
        raise ConfigError(
            f"dataset {name!r}: found a name that no folder can have, expected one, as results are "
            f"in OUTPUT_DIR/inference/NAME; call it {good!r}, or otherwise"
        )


def _register(files: _PairedFiles, vocabulary_json: str) -> None:
    name = files.name
    check_dataset_name(name)
    if files.pairs and files.image_list:
        raise ConfigError(
            f"dataset {name}: found image_list {files.image_list} and pairs {files.pairs}, "
            "expected one of them; leave out the image_list and keep the lines of pairs that count"
        )
    if name in DatasetCatalog.list():
        expected, found = registered_parts(name), files.parts() | {_CLASS_LIST: vocabulary_json}
        if other := other_parts(expected, found):
            raise DatasetError(
                f"dataset name {name!r} is taken by another registration: found {other} as "
                "there; choose another name for one of them"
            )
        return
    DatasetCatalog.register(name, files)
    MetadataCatalog[name] = _VocabularyMetadata(
        name=name,
        evaluator_type="zero_shot_sem_seg",
        vocabulary=vocabulary_json,
        image_root=files.images.root,
        sem_seg_root=files.labels.root,
    )


def registered_parts(name: str) -> dict[str, str]:
    """What a registered dataset is made of, by the word for it; the same of the same dataset."""
    files = DatasetCatalog[name]
    # Other code may list images in any way.
    parts = files.parts() if isinstance(files, _PairedFiles) else {}
    return parts | {_CLASS_LIST: MetadataCatalog.get(name).get("vocabulary") or ""}


def other_parts(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """What differs between two `registered_parts`: "image_list a.txt, expected b.txt"; "" if none.

    A path may be written in several ways.
    """
    if found.keys() != expected.keys():
        return "files of two folders, expected those that other code lists"
    return "; ".join(
        f"{key} {value or 'none'}, expected {expected[key] or 'none'}"
        for key, value in found.items()
        if value != expected[key] and not _is_one_place(value, expected[key])
    )


def _is_one_place(one: str, two: str) -> bool:
    return bool(one and two) and os.path.realpath(one) == os.path.realpath(two)


@contextmanager
def datasets_of(cfg: CfgNode) -> Iterator[None]:
    """Register what `DATASETS.FOLDER_DATASETS` describes, for a while.

    The configs of several runs may describe other datasets under one name.

    Raises:
        ConfigError, DatasetError: see `register_datasets`.
    """
    before = DatasetCatalog.list()
    register_datasets(cfg)
    names = {entry["name"] for entry in cfg.DATASETS.FOLDER_DATASETS}.difference(before)
    try:
        yield
    finally:
        for name in names:
            DatasetCatalog.pop(name)
            MetadataCatalog.pop(name)


def register_folder_dataset(
    name: str,
    images: str | Path,
    labels: str | Path,
    vocabulary: str | Path,
    image_list: str | Path = "",
    image_suffix: str = "",
    label_suffix: str = "",
    pairs: str | Path = "",
) -> None:
    """Register a folder of images and one of label files with the same names.

    Images are jpg, jpeg, png, webp, bmp, tif or tiff; labels png, gif, bmp, tif or tiff, or jpg
    where no other file has the name; in any case. Names are paths below the two folders, without
    suffix and extension.

    Args:
        name: name in `DATASETS.TRAIN` and `DATASETS.TEST`.
        images: the folder of images.
        labels: the folder of label files, which may be the same. There the suffixes tell which
            file is what; without them labels are png, or the first of the types above that is
            there, and images are of other types.
        vocabulary: vocabulary json.
        image_list: see `register_zero_shot_sem_seg`, as for what follows.
        image_suffix: what stands behind the common name.
        label_suffix: the same of the label.
        pairs: text file with an image and its label per line.

    Raises:
        ConfigError: there are pairs and an image_list, or the name is none of a folder.
        DatasetError: the name belongs to another dataset.
    """
    files = _PairedFiles(
        name,
        NamedFiles("image", expand_path(images), _IMAGE_EXTS, image_suffix),
        NamedFiles("label", expand_path(labels), LABEL_EXTS, label_suffix, _SPARE_LABEL_EXTS),
        image_list=expand_path(image_list),
        pairs=expand_path(pairs),
    )
    _register(files, expand_path(vocabulary))


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
            if not isinstance(value, str) or not (value or key in _ENTRY_SUFFIXES):
                raise ConfigError(f"{where}: {key} is {value!r}, expected a text; put it in quotes")
            if (
                key in _ENTRY_PATHS
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
    images: NamedFiles
    labels: NamedFiles
    prepare_command: str = ""
    image_list: str = ""
    manifest: str = ""
    pairs: str = ""
    max_pixels: int | None = field(default=None, compare=False, repr=False)
    cache: list[UsableSamples] = field(default_factory=list, init=False, compare=False, repr=False)

    def parts(self) -> dict[str, str]:
        """What it is made of but the class list, see `registered_parts`."""
        kinds = (self.images, self.labels)
        return (
            {f"{kind.what}s": kind.root for kind in kinds}
            | {f"{kind.what}_suffix": kind.suffix for kind in kinds}
            | {f"types of {kind.what}s": ", ".join(kind.extensions + kind.spare) for kind in kinds}
            | {"image_list": self.image_list, "pairs": self.pairs, "manifest": self.manifest}
            | {"command that makes it": self.prepare_command}
        )

    def __call__(self) -> list[dict[str, str]]:
        """One dict per image: "file_name", "sem_seg_file_name", "image_id"; sorted by image_id."""
        images, labels, unlisted = self._find()
        if self.image_list and self.manifest:
            self._check_manifest(len(images) + len(unlisted))
        may_skip = self.max_pixels is not None
        if may_skip and (images.keys() & labels.keys() or not self.advice_on_names()):
            return self._usable(images, labels, unlisted)
        if unlisted:
            line, remedy = next(iter(unlisted.items()))
            what = f"{self._unlisted} {'in' if self.image_list else 'of'}"
            raise DatasetError(
                f"dataset {self.name}: {self.pairs or self.image_list}: {len(unlisted)} {what} "
                f"{self.images.root}, such as {line!r}; {self.advice_on_names() or remedy}"
                f"{self._circumstances}"
            )
        self._refuse_lonely(images, labels, "images", self.labels)
        self._refuse_lonely(labels, images, "labels", self.images)
        return paired_samples(images, labels)

    def _usable(
        self, images: dict[str, str], labels: dict[str, str], unlisted: Mapping[str, str]
    ) -> list[dict[str, str]]:
        if not self.cache:
            vocabulary = Vocabulary.from_metadata(self.name)
            found = find_usable(self.name, images, labels, vocabulary, self.max_pixels)
            if unlisted:
                found.left_out[self._unlisted] = list(unlisted)
            self.cache.append(found)
        self.cache[0].report(self.name)
        return [dict(sample) for sample in self.cache[0].samples]

    @property
    def _unlisted(self) -> str:
        return "listed names without image" if self.image_list else "lines without files"

    def files_by_name(self) -> tuple[dict[str, str], dict[str, str]]:
        """Paths of images and of labels, also of those without a partner; checks nothing else."""
        return self._find()[:2]

    def advice_on_names(self) -> str:
        """What to write if a regular suffix keeps images and labels from pairing; "" otherwise."""
        if self.prepare_command or self.pairs:
            return ""
        return Pairing(self.images, self.labels).advice()

    def _find(self) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        """Paths of images and of labels by name, and what is wrong with lines of the list."""
        pairing = Pairing(self.images, self.labels)
        if self.pairs:
            pairs = PairList(self.pairs, self.images, self.labels)
            with self._naming():
                return pairs.resolve(pairing.certain)
        images, labels = self._listed(pairing)
        if not self.image_list:
            return images, labels, {}
        suffixes = self.images.stem_suffix, self.labels.stem_suffix
        listed = ImageList(self.image_list, self.images.root, *suffixes)
        with self._naming(self._advice):
            names, unlisted = listed.resolve(images, labels)
        images, labels = ({k: d[k] for k in names & d.keys()} for d in (images, labels))
        return images, labels, unlisted

    def _listed(self, pairing: Pairing) -> tuple[dict[str, str], dict[str, str]]:
        """Path of every file, by its name."""
        kinds = (self.images, self.labels)
        for kind in kinds:
            if not os.path.isdir(kind.root):
                raise DatasetError(
                    f"dataset {self.name}: no {kind.what} folder {kind.root}{self._advice}"
                )
        for kind, files in zip(kinds, pairing.found, strict=True):
            if not files:
                advice = self.advice_on_names() or (
                    "name the folder of images and that of labels, or the two of each pair in a "
                    "list, pairs: FILE"
                    if pairing.is_one_folder
                    else ""
                )
                other = min(map(str, files_below(kind.root)), default="")
                found = f", found {other}: save its kind as one of these" if other else ""
                raise DatasetError(
                    f"dataset {self.name}: no {kind.patterns} {kind.what} in {kind.root}"
                    + ("" if advice else found)
                    + (f"; {advice}" if advice else self._advice)
                )
        with self._naming():
            return pairing.unique()

    @contextmanager
    def _naming(self, advice: str = "") -> Iterator[None]:
        """Say in errors which dataset they are about."""
        try:
            yield
        except DatasetError as error:
            raise DatasetError(f"dataset {self.name}: {error}{advice}") from error

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
        self, files: Mapping[str, str], partners: Mapping[str, str], these: str, other: NamedFiles
    ) -> None:
        keys = files.keys() - partners.keys()
        if broken := [files[key] for key in sorted(keys) if not os.path.isfile(files[key])]:
            more = f", as are {len(broken) - 1} more of the {these}" if broken[1:] else ""
            raise DatasetError(
                f"dataset {self.name}: {broken[0]} is a broken link or no file{more}; mend or "
                "remove it"
            )
        if not keys:
            return
        examples = ", ".join(sorted(keys)[:_EXAMPLES])
        found = f"{len(keys)} {these} without {other.what} in {other.root}, such as {examples}; "
        if advice := self.advice_on_names():
            raise DatasetError(f"dataset {self.name}: {found}{advice}")
        stems = {os.path.join(other.root, key + other.stem_suffix) for key in keys}
        paths = (p for p in map(str, files_below(other.root)) if os.path.splitext(p)[0] in stems)
        if unread := next(paths, ""):
            found += f"{unread} is none of {other.patterns.replace(' or ', ', ')}: save it as one; "
        # Commands that run in the folder of the images write below it.
        if not self.prepare_command and any(os.sep in key for key in keys):
            found += (
                "what is none of the dataset, such as results in there: move it elsewhere, and "
                "name another OUTPUT_DIR or --output; "
            )
        if not (self.prepare_command or files.keys() & partners.keys()):
            found += "name the image and the label of each pair in a list, pairs: FILE; or "
        raise DatasetError(
            f"dataset {self.name}: {found}add what is missing, or go on without them: "
            f"DATASETS.ON_BAD_SAMPLE skip{self._advice}"
        )

    @property
    def _advice(self) -> str:
        return self._circumstances + ("" if self.prepare_command else "; check the path")

    @property
    def _circumstances(self) -> str:
        value = os.environ.get("DETECTRON2_DATASETS", "")
        variable = f" (DETECTRON2_DATASETS is {repr(value) if value else 'not set'})"
        if self.prepare_command:
            return f"{variable}; run: {self.prepare_command}"
        # A user's absolute path elsewhere has nothing to do with it.
        is_below = value and Path(self.images.root).is_relative_to(expand_path(value))
        return variable if is_below or not os.path.isabs(self.images.root) else ""
