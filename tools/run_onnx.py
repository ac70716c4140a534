#!/usr/bin/env python
"""Label an image with an exported model, without torch, as its model.json says.

tagclip run-onnx out/export image.png labels.png
tagclip run-onnx out/export image.png labels.png --vocab "red bus, cat"
tagclip run-onnx out/export image.png labels.png --int8 --runtime openvino

Other words take a model of tagclip export --words input. Of model.json,
class_ids are the values of the labels, and ignore_label that of no class; other
words have 0 to K - 1, and 255, or 65535 from K = 256 on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tagclip.errors import ConfigError, TagCLIPError
from tagclip.utils.cli import check_output, error_line, expand_arguments, writing
from tagclip.utils.files import write_atomic
from tagclip.utils.tool_parser import ToolParser

# numpy and onnxruntime may be missing: main says so.
if TYPE_CHECKING:
    from tagclip.export.runtime.class_vectors import ClassVectors
    from tagclip.export.runtime.exported_model import ExportedModel


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_argument(
        "export", metavar="EXPORT", type=Path, help="folder with model.json and model.onnx"
    )
    parser.add_argument(
        "image", metavar="IMAGE", type=Path, help="read as in training: upright, without alpha"
    )
    parser.add_argument("labels", metavar="LABELS", type=Path, help="NAME.png to write")
    words = parser.add_mutually_exclusive_group()
    words.add_argument(
        "--vocab", "--words", dest="words", metavar="NAMES", help="""'cat, "blue, striped fence"'"""
    )
    words.add_argument(
        "--vocab-file", "--words-file", dest="words_file", metavar="FILE", help="one name per line"
    )
    words.add_argument("--vectors", type=Path, metavar="FILE", help="npz of --save-vectors")
    parser.add_argument("--save-vectors", type=Path, metavar="FILE", help="npz of these words")
    parser.add_argument("--int8", action="store_true", help="run model_int8.onnx of the folder")
    parser.add_argument(
        "--runtime",
        choices=("onnxruntime", "openvino"),
        default="onnxruntime",
        help="same results, other speed",
    )
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    return make_parser().parse_args(args)


def main(args: argparse.Namespace) -> None:
    """Label one image.

    Raises:
        TagCLIPError: a file, a word or an option is not in order.
    """
    try:
        import numpy as np
        from PIL import Image

        from tagclip.export.runtime.checked_recipe import label_values
        from tagclip.export.runtime.exported_model import ExportedModel, expecting
        from tagclip.export.runtime.images import read_image
        from tagclip.utils.png_notes import png_with_notes
    except ImportError as error:
        raise ConfigError(f"{error}; run: pip install numpy {args.runtime} pillow") from error

    if args.labels.resolve() == args.image.resolve():
        raise ConfigError(
            f"{args.labels}: found the image itself, expected another file for the labels"
        )
    if args.labels.suffix.lower() != ".png":
        raise ConfigError(
            f"{args.labels}: found the suffix {args.labels.suffix!r}, expected a PNG file"
        )
    check_output("labels", args.labels)
    if args.save_vectors:
        _check_saved(args.save_vectors, args.export)
    file = "model_int8.onnx" if args.int8 else "model.onnx"
    model = ExportedModel(args.export, args.runtime, file)
    with expecting(args.export / "model.json", "what tagclip export writes; export again"):
        classes, recipe = _classes(args, model), model.recipe
    with expecting(args.image, "an image that Pillow reads, 8-bit or 16-bit gray"):
        image = read_image(args.image)
    with expecting(f"{args.image} {image.shape[:2]}", "pixels for the input of model.json"):
        labels = model.label(image, classes)
    names = list(recipe["class_names"] if classes is None else classes.names)
    # Other words have numbers alone.
    is_own = not (args.words or args.words_file or args.vectors)
    values = label_values(recipe if is_own else {"class_names": names})
    with expecting(args.export / "model.json", "labels of 16 bits at most; export again"):
        picture = Image.fromarray(np.array(values).astype(np.min_scalar_type(max(values)))[labels])
    found = {values[k]: names[k] for k in np.unique(labels).tolist() if k < len(names)}
    with writing("labels", args.labels):
        write_atomic(args.labels, png_with_notes(picture, words=found))
    print({name: f"{(labels == index).mean():.1%}" for index, name in enumerate(names)})


def _check_saved(path: Path, export: Path) -> None:
    """Refuse to replace a file of this run."""
    if path.suffix != ".npz" or path.resolve().parent == export.resolve():
        raise ConfigError(
            f"--save-vectors {path}: expected NAME.npz outside of the model's folder; name another"
        )
    check_output("--save-vectors", path)


def _classes(args: argparse.Namespace, model: ExportedModel) -> ClassVectors | None:
    """The classes asked for; None where words are baked in."""
    from tagclip.utils.class_names import is_list_file, read_lines, split_words

    if args.words is not None:
        if is_list_file(args.words):
            raise ConfigError(
                f"--vocab: found {args.words}, a file, expected names with commas between them; "
                "give it as --vocab-file, with one name per line"
            )
        classes = model.encode(split_words(args.words))
    elif args.words_file:
        classes = model.encode(read_lines(args.words_file))
    elif args.vectors or args.save_vectors or model.takes_words:
        classes = model.read(args.vectors)
    else:
        return None
    if args.save_vectors:
        with writing("--save-vectors", args.save_vectors):
            write_atomic(args.save_vectors, classes.content())
    return classes


def invoke_main() -> None:
    """Parse the command line and run."""
    try:
        main(expand_arguments(parse_args()))
    except TagCLIPError as error:
        sys.exit(error_line(error))


if __name__ == "__main__":
    invoke_main()
