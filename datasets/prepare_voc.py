#!/usr/bin/env python
"""Make the labels of voc2012_train (with the annotations of SBD) and voc2012_val.

tagclip prepare voc --root datasets --workers 8

Training images are the 1464 of VOC 2012, with its own labels, and those of SBD
that are not in VOC's validation set, 10582 in all; without SBD, --allow-missing
takes the 1464 alone. datasets/README.md tells what to download.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prepare_cli import Options, prepare_parser, run_script

from tagclip.errors import ConfigError, DatasetError
from tagclip.utils.tool_parser import ToolParser

if TYPE_CHECKING:
    from prepare_sources import LabelSource

_VOC = Path("VOCdevkit/VOC2012")
_SBD = ("VOCdevkit/VOCaug/dataset", "benchmark_RELEASE/dataset")
_VOID = 255
_AUGMENTED = "voc2012_train"


def prepare_dataset(name: str, options: Options) -> None:
    """Make the labels of one dataset."""
    from prepare_common import prepare
    from prepare_sources import LabelSource, find_folder, list_files, read_names

    if options.extra.sbd and _AUGMENTED not in options.datasets:
        raise ConfigError(
            f"--sbd is {options.extra.sbd}, but --only names no dataset that reads SBD; name "
            f"{_AUGMENTED} as well, or leave --sbd out"
        )
    voc = find_folder([options.root / _VOC], "VOC 2012")
    lists = voc / "ImageSets" / "Segmentation"
    folder = voc / "SegmentationClass"
    # Labels that others made from SegmentationClassAug have classes on the void borders, which
    # does no harm in training and changes the result in evaluation.
    void = _VOID if name == _AUGMENTED else None
    sources = [LabelSource.of(name, folder, list_files(folder, ".png"), "voc2012", void=void)]
    names = read_names(lists / f"{name.removeprefix('voc2012_')}.txt")
    if name == _AUGMENTED and (found := _augmentation(name, options, voc)):
        added, source = found
        names += sorted(added - set(names) - set(read_names(lists / "val.txt")))
        sources.append(source)
    prepare(name, options, names, list_files(voc / "JPEGImages", ".jpg"), sources)


def _augmentation(name: str, options: Options, voc: Path) -> tuple[set[str], LabelSource] | None:
    """Image names and labels of SBD, or of its conversion SegmentationClassAug; None: none."""
    from prepare_sources import LabelSource, find_folder, list_files, read_names, read_sbd_mat

    converted = voc / "SegmentationClassAug"
    places = [*(options.root / place for place in _SBD), converted]
    try:
        folder = find_folder(
            [options.extra.sbd] if options.extra.sbd else places, "the annotations of SBD"
        )
    except DatasetError as error:
        if options.extra.sbd:
            raise
        if not options.allow_missing:
            raise DatasetError(
                f"{error}, or pass --allow-missing to train on VOC's own labels"
            ) from error
        logging.getLogger("prepare").warning("%s: %s; VOC's own labels are taken", name, error)
        return None
    if folder == converted:
        files = list_files(converted, ".png")
        return set(files), LabelSource.of(name, folder, files, "voc2012", void=_VOID)
    names = {name for subset in ("train", "val") for name in read_names(folder / f"{subset}.txt")}
    folder /= "cls"
    files = list_files(folder, ".mat")
    return names, LabelSource.of(name, folder, files, "voc2012", read_sbd_mat)


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = prepare_parser(__doc__, (_AUGMENTED, "voc2012_val"))
    parser.add_argument(
        "--sbd",
        metavar="FOLDER",
        type=Path,
        help=f"folder of SBD with cls, train.txt and val.txt (default: {' or '.join(_SBD)} "
        "below --root, else the pngs in SegmentationClassAug)",
    )
    return parser


def invoke_main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    run_script(make_parser(), prepare_dataset, argv)


if __name__ == "__main__":
    invoke_main()
