#!/usr/bin/env python
"""Make the labels of coco_stuff_train and coco_stuff_val.

tagclip prepare coco-stuff --root datasets --workers 8

Labels of other converters are taken with --converted: those with the same ids
(mmsegmentation, zsseg, SAN, CAT-Seg) are linked, those of ZegFormer, which puts
seen classes first, are remapped:

tagclip prepare coco-stuff --converted datasets/coco_stuff164k/annotations

The order of the classes is found out from the raw labels of some of the images;
without any it has to be named with --order. datasets/README.md tells what to
download.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from prepare_cli import Options, add_converted, prepare_parser, run_script

from tagclip.errors import DatasetError
from tagclip.utils.files import make_folder
from tagclip.utils.tool_parser import ToolParser

# Folders of detectron2, mmsegmentation, CAT-Seg and ZegFormer; {} is the subset.
_IMAGES = (
    "coco/{}",
    "coco_stuff164k/images/{}",
    "coco-stuff/images/{}",
    "coco/coco_stuff/images/{}",
)
_LABELS = (
    "coco/stuffthingmaps/{}",
    "coco_stuff164k/annotations/{}",
    "coco-stuff/annotations/{}",
    "coco/coco_stuff/annotations/{}",
)
_RAW = "coco_stuff"
_ORDERS = ("coco_stuff_converted", "coco_stuff_seen_first", _RAW)
_CONVERTED = "_labelTrainIds.png"


def prepare_dataset(name: str, options: Options) -> None:
    """Make the labels of one dataset."""
    from prepare_common import prepare
    from prepare_sources import (
        LabelSource,
        converted_source,
        find_folder,
        list_files,
        refuse_converted,
        refuse_order,
    )

    subset = f"{name.removeprefix('coco_stuff_')}2017"
    places = [options.root / place.format(subset) for place in _IMAGES]
    folder = find_folder(places, f"images of {subset}")
    _link_folder(folder, places[0])
    images = list_files(folder, ".jpg")
    places = [options.root / place.format(subset) for place in _LABELS]
    converted = options.extra.converted
    if not converted:
        refuse_order(options.extra.order)
        folder = find_folder(places, f"labels of {subset}")
        source = LabelSource.of(name, folder, list_files(folder, ".png"), _RAW)
        refuse_converted(source, images.keys())
    else:
        raw = {place: list_files(place, ".png") for place in places}
        place = next((place for place in places if raw[place]), places[0])
        reference = LabelSource.of(name, place, raw[place], _RAW)
        inner = [converted / subset, converted / f"{subset}_all", converted]
        folder = find_folder(inner, "converted labels")
        files = list_files(folder, _CONVERTED, ".png")
        source = converted_source(name, folder, files, _ORDERS, options.extra.order, reference)
    prepare(name, options, list(images), images, [source])


def _link_folder(folder: Path, place: Path) -> None:
    """Make the images of another tree appear where the registered dataset looks for them.

    Raises:
        DatasetError: a file is in the way.
    """
    if place.is_dir():
        return
    if place.exists():
        raise DatasetError(
            f"{place}: found a file, expected a folder of images or nothing there; move it away, "
            f"and a link to {folder} takes its place"
        )
    make_folder(place.parent)
    if place.is_symlink():
        logging.getLogger("prepare").info(
            "%s: was a link to %s, which leads nowhere; now it leads to %s",
            place, place.readlink(), folder,
        )  # fmt: skip
        place.unlink()
    place.symlink_to(os.path.relpath(folder.resolve(), place.parent.resolve()))


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = prepare_parser(__doc__, ("coco_stuff_train", "coco_stuff_val"))
    folder = "folder of another converter's labels, or the one above train2017 and val2017"
    add_converted(parser, folder, _ORDERS)
    return parser


def invoke_main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    run_script(make_parser(), prepare_dataset, argv)


if __name__ == "__main__":
    invoke_main()
