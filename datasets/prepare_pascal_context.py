#!/usr/bin/env python
"""Make the labels of PASCAL Context: 59 classes, 60 (with background) and 459.

tagclip prepare pascal-context --root datasets --workers 8

Reads the annotations as they are distributed (trainval/*.mat). Without them,
png labels with 59 or 60 classes are taken (--converted; default:
SegmentationClassContext). Two orders of the classes are in use, the
alphabetical one and that of 59_labels.txt with the classes of VOC first; which
one it is is found out from the .mat files or VOC's own labels of some of the
images. datasets/README.md tells what to download.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prepare_cli import Options, add_converted, prepare_parser, run_script

from tagclip.errors import ConfigError, DatasetError
from tagclip.utils.tool_parser import ToolParser

if TYPE_CHECKING:
    from prepare_sources import LabelSource

    from tagclip.data.datasets.label_map import LabelMap

_VOC = Path("VOCdevkit/VOC2010")
_MAT = ("VOCdevkit/VOC2010/trainval", "pascal-context/trainval", "trainval")
_ORDERS = (
    "context59_alphabetical",
    "context59_voc_first",
    "context60_alphabetical",
    "context60_voc_first",
)
_DATASETS = (
    "pascal_context59_train",
    "pascal_context59_val",
    "pascal_context60_train",
    "pascal_context60_val",
    "pascal_context459_val",
)


def prepare_dataset(name: str, options: Options) -> None:
    """Make the labels of one dataset."""
    from prepare_common import prepare
    from prepare_sources import find_folder, list_files, read_names

    voc = find_folder([options.root / _VOC], "VOC 2010")
    lists = voc / "ImageSets"
    folder = find_folder([lists / "SegmentationContext", lists / "Main"], "lists of images")
    names = read_names(folder / f"{name.rsplit('_', 1)[1]}.txt")
    images = list_files(voc / "JPEGImages", ".jpg")
    prepare(name, options, names, images, [_label_source(name, options, voc)])


def _label_source(name: str, options: Options, voc: Path) -> LabelSource:
    """The .mat files, or another converter's labels if asked for or nothing else is there."""
    from prepare_sources import (
        LabelSource,
        find_folder,
        list_files,
        read_context_mat,
        refuse_order,
    )

    mat = options.extra.mat
    if mat and not mat.is_dir():
        raise ConfigError(
            f"--mat {mat}: found no folder, expected that of the .mat files of PASCAL Context; "
            "mend the path, or leave --mat out"
        )
    places = [mat] if mat else [options.root / place for place in _MAT]
    has_mat = any(place.is_dir() for place in places)
    converted, usual = options.extra.converted, voc / "SegmentationClassContext"
    if not converted and not has_mat and usual.is_dir():
        converted = usual
    if converted and not has_mat:
        folder = voc / "SegmentationClass"
        reference = LabelSource.of(name, folder, list_files(folder, ".png"), "voc2012")
        return _converted(name, options, converted, reference)
    folder = find_folder(places, "the .mat files of PASCAL Context")
    source = LabelSource.of(
        name,
        folder,
        list_files(folder, ".mat"),
        "context459",
        read_context_mat,
        _background(name),
    )
    _check_label_list(folder.parent / "labels.txt", source.label_map)
    if converted:
        return _converted(name, options, converted, source)
    refuse_order(options.extra.order)
    return source


def _background(name: str) -> str:
    return "background" if name.startswith("pascal_context60") else ""


def _converted(name: str, options: Options, folder: Path, reference: LabelSource) -> LabelSource:
    from prepare_sources import converted_source, find_folder, list_files

    if name.startswith("pascal_context459"):
        raise DatasetError(
            f"{name}: {folder} has at most 60 classes, expected the .mat files of PASCAL Context; "
            "name their folder with --mat and no --converted, or the other datasets with --only"
        )
    inner = folder / name.replace("pascal_context", "pc")
    folder = find_folder([inner, folder], "converted labels")
    files, order = list_files(folder, ".png"), options.extra.order
    return converted_source(name, folder, files, _ORDERS, order, reference, _background(name))


def _check_label_list(path: Path, label_map: LabelMap) -> None:
    """Refuse .mat files whose labels.txt has other classes than `label_map`."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        number, _, name = line.partition(":")
        if not number.strip().isdigit():
            continue
        expected = label_map.class_names.get(int(number))
        if "".join(name.split()).casefold() != expected:
            raise DatasetError(
                f"{path}: class {number.strip()} is {name.strip()!r}, expected {expected!r}; take "
                "the labels.txt and the .mat files of PASCAL Context's download"
            )


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = prepare_parser(__doc__, _DATASETS)
    parser.add_argument(
        "--mat", metavar="FOLDER", type=Path, help=f"folder of the .mat files (default: {_MAT[0]})"
    )
    add_converted(parser, "folder of png labels of another converter", _ORDERS)
    return parser


def invoke_main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    run_script(make_parser(), prepare_dataset, argv)


if __name__ == "__main__":
    invoke_main()
