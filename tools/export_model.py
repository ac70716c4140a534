#!/usr/bin/env python
"""Write a model as ONNX and TorchScript, and a json that says how to run it.

tagclip export --weights FILE --output out --vocab "cat, dining table"
tagclip export --weights FILE --output out --format onnx --dynamic
tagclip export --weights FILE --output out --words input
tagclip export --weights FILE --output out --int8 --calibrate photos/
tagclip export --weights FILE --output out --format torchscript \\
    TEST.DTYPE bfloat16

Words are baked in, or with --words input an input.

The files take windows, uint8 (N, 3, H, W), neither normalised nor padded, and
return the final class scores, the labels and the trusty map of each. model.json
says how an image becomes windows and their scores become its labels; tagclip
run-onnx does so without torch. Files of an earlier export stay in the folder
if they are of the same model, words and settings; others of it are removed.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagclip.errors import ConfigError, TagCLIPError
from tagclip.utils.cli import check_output, run_tool
from tagclip.utils.files import files_atomic, remove_leftovers, write_atomic
from tagclip.utils.run_lock import RunLock
from tagclip.utils.text import json_text
from tagclip.utils.tool_parser import NOT_OF_INFERENCE, ToolParser, add_vocabulary_options

# detectron2 is imported inside the functions: --help answers at once.
if TYPE_CHECKING:
    from tagclip.predictor import TagCLIPPredictor

FILES = {"onnx": "model.onnx", "torchscript": "model.ts"}
INT8_FILE = "model_int8.onnx"
# Of a score or a class vector, between an exported file and the model.
TOLERANCE = 1e-4
# Pixels of a window's side; larger images are seen in several.
LARGEST_SIDE = 16384
# The same of matrices in half precision, which rounds by the order of its sums.
HALF_TOLERANCE = 5e-3

# The key of NOT_OF_INFERENCE that --report reads.
OF_REPORT = "DATASETS.ON_BAD_SAMPLE"


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    # argparse would not break the line of the class lists.
    usage = "%(prog)s --weights FILE --output FOLDER [options] [KEY VALUE ...]"
    parser = ToolParser(__doc__, usage=usage)
    parser.add_config_file(use="instead of that of the weights")
    parser.add_weights("the model", "MODEL.WEIGHTS", default="")
    add_vocabulary_options(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="for the files"
    )
    parser.add_argument(
        "--format", nargs="+", choices=list(FILES), help="default: both, of words as an input onnx"
    )
    parser.add_argument(
        "--words",
        choices=("baked", "input"),
        default="baked",
        help="input: an ONNX that takes class vectors, windows of any size",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--size", type=_size, metavar="HxW", help="pixels of a window, default MODEL.TAGCLIP.TEST's"
    )
    size.add_argument("--dynamic", action="store_true", help="windows of any size")
    parser.add_config_keys(
        unread=["OUTPUT_DIR", *(key for key in NOT_OF_INFERENCE if key != OF_REPORT)]
    )
    _add_int8_options(parser)
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    parsed = parser.parse_args(args)
    if OF_REPORT in parsed.opts[::2] and not parsed.report:
        parser.error(f"{OF_REPORT}: does nothing without --report, leave it out")
    return parsed


def _add_int8_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "int8", f"a smaller and faster {INT8_FILE} beside the ONNX, for CPUs"
    )
    group.add_argument("--int8", action="store_true", help="write it")
    group.add_argument(
        "--calibrate",
        nargs="+",
        default=[],
        metavar="IMAGES",
        help="images like those of use, without labels: files, folders, globs; some 20 to 100",
    )
    group.add_argument(
        "--report",
        default="",
        metavar="DATASET",
        help="its mIoU in float32 and in int8; default: the labels that change on --calibrate",
    )


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    sides = [int(side) for side in (height, width) if side.isdecimal()]
    if len(sides) != 2 or not all(0 < side <= LARGEST_SIDE for side in sides):
        raise argparse.ArgumentTypeError(
            f"found {text!r:.60}, expected pixels such as 512x512, at most {LARGEST_SIDE} each"
        )
    return int(height), int(width)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Export, compare each file with the model, write; return the content of the json."""
    from tagclip.export.earlier import EarlierExport
    from tagclip.export.onnx import require_onnx
    from tagclip.export.recipe import WORD_FILES, export_recipe

    takes_words = args.words == "input"
    formats = list(dict.fromkeys(args.format or (["onnx"] if takes_words else FILES)))
    if takes_words and formats != ["onnx"]:
        raise ConfigError(
            f"--format {' '.join(formats)}: expected onnx with --words input; leave --format out, "
            "or bake the words in"
        )
    if "onnx" in formats:
        require_onnx()
    folder = args.output
    check_output("--output", folder, is_folder=True)
    calibration = calibration_images(args, formats)
    words = set(WORD_FILES.values())
    names = {FILES[kind] for kind in formats} | (words if takes_words else set())
    names |= {INT8_FILE} if calibration else set()
    # Before the work: who is refused has not waited for it.
    with RunLock(folder, "--output"):
        earlier = EarlierExport.find(folder, {*FILES.values(), INT8_FILE, *words}, names)
        predictor = build_predictor(args)
        shown = report_images(args, predictor, calibration)
        size = window_size(args, predictor)
        files = export(predictor, size, formats, takes_words)
        recipe = export_recipe(predictor, size, files, takes_words)
        contents = {name: content for name, (content, _) in files.items()}
        if calibration:
            model = contents["model.onnx"]
            contents[INT8_FILE] = add_int8(args, predictor, recipe, model, calibration, shown)
        is_same = earlier.is_of(recipe)
        if is_same:
            earlier.join(recipe)
        write_files(folder, contents, recipe, () if is_same else earlier.names)
    return recipe


def write_files(
    folder: Path, contents: dict[str, bytes], recipe: dict[str, Any], stale: Sequence[str]
) -> None:
    """Write the models and the json, all or none, and remove those of another export.

    Args:
        folder: for the files.
        contents: by file name.
        recipe: content of model.json, whose checksums say whether the files beside it are its own.
        stale: names of the files to remove.

    Raises:
        OutputError: a file cannot be written; an earlier export is as it was.
    """
    # Nobody else is writing there.
    remove_leftovers(folder, "files")
    with files_atomic(folder) as temporary:
        for name, content in contents.items():
            write_atomic(temporary / name, content)
        write_atomic(temporary / "model.json", json_text(recipe, indent=1))
    for name in stale:
        (folder / name).unlink()
    for name in (*contents, "model.json"):
        print(f"Written: {folder / name}")
    if stale:
        print(f"Removed, of an earlier export of another model: {', '.join(stale)}")


def calibration_images(args: argparse.Namespace, formats: Sequence[str]) -> list[Path]:
    """Files that --calibrate names; none without --int8.

    Raises:
        ConfigError: options do not fit together, or there are no such files.
    """
    from tagclip.demo.media import list_images

    if not args.int8 and (args.calibrate or args.report):
        option = "--calibrate" if args.calibrate else "--report"
        raise ConfigError(f"{option}: found no --int8, expected it beside this option; add --int8")
    if not args.int8:
        return []
    if "onnx" not in formats:
        raise ConfigError(
            f"--int8: found --format {' '.join(formats)}, expected onnx among them; leave --format "
            "out, or --int8"
        )
    if not args.calibrate:
        raise ConfigError(
            "--int8: found no images to calibrate with, expected some like those of use; add "
            "--calibrate with a folder or files"
        )
    return list(list_images(args.calibrate, args.output, "--calibrate"))


def report_images(
    args: argparse.Namespace, predictor: TagCLIPPredictor, calibration: Sequence[Path]
) -> Sequence[Any]:
    """What the int8 file is compared on: images of --report, or else those of --calibrate.

    Raises:
        TagCLIPError: the dataset is not in order.
    """
    from tagclip.export.quantization_report import labelled_images

    return labelled_images(args.report, predictor) if args.report else calibration


def add_int8(
    args: argparse.Namespace,
    predictor: TagCLIPPredictor,
    recipe: dict[str, Any],
    content: bytes,
    images: Sequence[Path],
    shown: Sequence[Any],
) -> bytes:
    """Quantize the ONNX file, report what that costs, and describe both in the recipe.

    Args:
        args: of the command line.
        predictor: with the vocabulary that was exported.
        recipe: content of model.json, which gets the new file and an entry ``int8``.
        content: of the ONNX file.
        images: to calibrate with.
        shown: to compare on, see `report_images`.

    Returns:
        The int8 file.

    Raises:
        TagCLIPError: an image cannot be read or is too small.
    """
    from tagclip.export import quantization_report as reports
    from tagclip.export.onnx import class_inputs
    from tagclip.export.quantization import quantize
    from tagclip.export.recipe import file_recipe
    from tagclip.export.runtime.session import open_model
    from tagclip.modeling.clip.weights import file_sha256

    inputs, classes, name = reports.ExportInput(predictor, recipe), {}, "images"
    if args.words == "input":
        vectors, seen = class_inputs(predictor.model, predictor.vocabulary)
        classes, name = {"class_vectors": vectors, "seen": seen}, "image"
    start = time.monotonic()
    quantized = quantize(
        content,
        ({name: window} | classes for path in images for window in inputs.windows(path)),
    )
    seconds = time.monotonic() - start
    print(f"int8: {len(quantized) / 2**20:.1f} MiB in {seconds:.0f} s, {len(images)} images")
    models = [open_model(file) for file in (content, quantized)]
    runs = [lambda window, run=model: run({name: window} | classes) for model in models]
    report = reports.int8_report(predictor, inputs, runs, shown, args.report)
    print(reports.format_report(report))
    recipe["files"][INT8_FILE] = file_recipe(quantized)
    sums = "".join(sorted(map(file_sha256, images)))
    sha256 = hashlib.sha256(sums.encode()).hexdigest()
    recipe["int8"] = {"calibration": {"images": len(images), "sha256": sha256}, "report": report}
    return quantized


def build_predictor(args: argparse.Namespace) -> TagCLIPPredictor:
    """Build the model and set the vocabulary.

    Raises:
        TagCLIPError: options, config, checkpoint or vocabulary are not in order.
    """
    from tagclip import TagCLIPPredictor, load_config
    from tagclip.checkpoint import checkpoint_config
    from tagclip.data.datasets.register import register_datasets
    from tagclip.structures.vocabulary_words import read_asked

    given = dict(zip(args.opts[0::2], args.opts[1::2], strict=False))
    for key, expected in (("MODEL.DEVICE", "cpu"), ("MODEL.COMPILE", "False")):
        if given.get(key, expected) != expected:
            raise ConfigError(
                f"{key}: found {given[key]}, expected {expected}: an export is made and compared "
                "on the CPU, whatever runs it later; leave the key out"
            )
    opts = [*args.opts, "MODEL.DEVICE", "cpu", "MODEL.COMPILE", False]
    if not args.config_file and not args.weights:
        raise ConfigError("command line: found no model, expected --weights or --config-file")
    if args.config_file:
        weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
        cfg = load_config(args.config_file, [*opts, *weights])
    else:
        cfg = checkpoint_config(args.weights, opts)
    if args.report:
        # Of the config, too: the predictor needs no data and drops them.
        register_datasets(cfg)
    if cfg.TEST.AUG.ENABLED:
        raise ConfigError(
            "TEST.AUG.ENABLED: found True, expected False; an exported model sees one view"
        )
    predictor = TagCLIPPredictor(cfg)
    vocabulary = read_asked(args, predictor.dataset_names)
    predictor.set_vocabulary(predictor.vocabulary if vocabulary is None else vocabulary)
    return predictor


def window_size(args: argparse.Namespace, predictor: TagCLIPPredictor) -> tuple[int, int] | None:
    """(height, width) of a window in pixels; None leaves it open."""
    settings = predictor.model.inference_settings
    is_open = args.words == "input" or settings.mode == "whole"
    if args.dynamic or (args.size is None and is_open):
        return None
    return args.size or (settings.window, settings.window)


def export(
    predictor: TagCLIPPredictor,
    size: tuple[int, int] | None,
    formats: Sequence[str],
    takes_words: bool = False,
) -> dict[str, tuple[bytes, float | None]]:
    """Make the files in memory and compare each with the model, on one window of noise.

    Args:
        predictor: with the vocabulary that is baked in, or else compared with.
        size: (height, width) of the windows in pixels; None: any.
        formats: of `FILES`.
        takes_words: whether class vectors are an input.

    Returns:
        File name -> content and largest difference of a number, None where there is no network.

    Raises:
        TagCLIPError: a format cannot be written, or a file computes something else.
    """
    import numpy as np
    import torch

    from tagclip.export import onnx as exporting

    vocabulary = predictor.vocabulary
    window_model = exporting.WindowModel(predictor.model, None if takes_words else vocabulary, size)
    classes = exporting.class_inputs(predictor.model, vocabulary) if takes_words else ()
    convert = {"onnx": exporting.to_onnx, "torchscript": exporting.to_torchscript}
    # An open size is tried at another one than the graph was made with, no whole patches.
    height, width = size or (4 * window_model.patch_size + 1, 2 * window_model.patch_size + 3)
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, height, width), np.uint8)
    files = {}
    for kind in dict.fromkeys(formats):
        start = time.monotonic()
        content = convert[kind](window_model)
        run = exporting.RUNNERS[kind](content)
        difference = exporting.largest_difference(
            lambda images, run=run: run(images, *classes), predictor.model, vocabulary, noise
        )
        is_half = predictor.model.backbone.inference_dtype != torch.float32
        tolerance = HALF_TOLERANCE if is_half else TOLERANCE
        _check(FILES[kind], content, difference, start, tolerance)
        files[FILES[kind]] = (content, difference)
    return files | (export_words(predictor) if takes_words else {})


def export_words(predictor: TagCLIPPredictor) -> dict[str, tuple[bytes, float | None]]:
    """Make what encodes words, and the class vectors of the predictor's vocabulary.

    Returns:
        As `export`, the files of `WORD_FILES`.

    Raises:
        TagCLIPError: the text tower cannot be written, or computes something else.
    """
    import numpy as np

    from tagclip import Vocabulary
    from tagclip.export import onnx as exporting
    from tagclip.export.recipe import WORD_FILES
    from tagclip.export.runtime.class_vectors import ClassVectors, encode_names
    from tagclip.export.runtime.tokenizer import Tokenizer

    start, bank = time.monotonic(), predictor.model.text_bank
    merges, content = bank.source.merges(), exporting.text_tower_to_onnx(bank.source)
    run = exporting.RUNNERS["onnx"](content)
    rules = {"templates": bank.templates, "context_length": bank.source.context_length}
    names = predictor.model.train_vocabulary.names[:3]
    found = encode_names(names, rules, Tokenizer(merges), lambda tokens: run(tokens)[0])
    tried = Vocabulary.from_names(names, seen=names)
    expected, _ = exporting.class_inputs(predictor.model, tried)
    difference = float(np.abs(found - expected).max())
    _check(WORD_FILES["text_model"], content, difference, start)
    vectors, seen = exporting.class_inputs(predictor.model, predictor.vocabulary)
    classes = ClassVectors(
        tuple(predictor.vocabulary.names), vectors, seen, bank.source.fingerprint
    )
    contents = {"text_model": content, "merges": merges, "vectors": classes.content()}
    return {
        file: (contents[key], difference if key == "text_model" else None)
        for key, file in WORD_FILES.items()
    }


def _check(
    name: str, content: bytes, difference: float, start: float, tolerance: float = TOLERANCE
) -> None:
    """Refuse a network that computes something else, or say how large, exact and slow it was."""
    # Not ">": a difference may be nan.
    if not difference <= tolerance:
        raise TagCLIPError(
            f"{name}: numbers differ by {difference:.2g} from the model's, expected at most "
            f"{tolerance:g}; nothing was written: export with other packages of the extra export, "
            "or another --format"
        )
    print(
        f"{name}: {len(content) / 2**20:.1f} MiB in {time.monotonic() - start:.0f} s, differs from "
        f"the model by {difference:.1g} at most"
    )


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
