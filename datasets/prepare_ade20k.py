#!/usr/bin/env python
"""Make the labels of ade20k150_train, ade20k150_val and ade20k847_val.

tagclip prepare ade20k --root datasets --only ade20k150_train ade20k150_val

The 847 classes are those of the full ADE20K (ADE20K_2021_17_01). Its images are
very large, so that copies with a short side of at most 512 pixels are made, as
all who report this benchmark do. datasets/README.md tells what to download.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prepare_cli import Options, prepare_parser, run_script

from tagclip.utils.tool_parser import ToolParser

_SCENES = Path("ADEChallengeData2016")
_FULL = Path("ADE20K_2021_17_01/images/ADE/validation")
_SHORT_SIDE = 512


def prepare_dataset(name: str, options: Options) -> None:
    """Make the labels of one dataset."""
    from prepare_common import prepare
    from prepare_sources import LabelSource, find_folder, list_files, read_object_numbers

    if name == "ade20k847_val":
        # Images lie in a folder for each kind of scene, beside their labels.
        folder = find_folder([options.root / _FULL], "the full ADE20K")
        images = {path.stem: path for path in sorted(folder.rglob("*.[jJ][pP][gG]"))}
        files = {key: path.with_name(f"{key}_seg.png") for key, path in images.items()}
        files = {key: path for key, path in files.items() if path.is_file()}
        source = LabelSource.of(name, folder, files, "ade847", read_object_numbers)
        prepare(name, options, list(images), images, [source], _SHORT_SIDE)
        return
    subset = "training" if name == "ade20k150_train" else "validation"
    scenes = find_folder([options.root / _SCENES], "ADEChallengeData2016")
    images = list_files(scenes / "images" / subset, ".jpg")
    folder = scenes / "annotations" / subset
    source = LabelSource.of(name, folder, list_files(folder, ".png"), "ade150")
    prepare(name, options, list(images), images, [source])


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    return prepare_parser(__doc__, ("ade20k150_train", "ade20k150_val", "ade20k847_val"))


def invoke_main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    run_script(make_parser(), prepare_dataset, argv)


if __name__ == "__main__":
    invoke_main()
