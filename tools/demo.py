#!/usr/bin/env python
"""Segment images, folders, videos or a webcam into any classes, and draw it.

tagclip segment photo.jpg --vocab "yellow ball, green dice, red board, water"
tagclip segment photos/ --weights model_final.pth --output out/ \\
    --vocab "cat, dining table" --context coco_stuff_val --save-labels
tagclip segment photos/ --vocab "cat, dining table" --json result.json --no-draw
tagclip segment street.mp4 --vocab-file words.txt --output out/
tagclip segment photo.jpg --method naclip --vocab "cat, dining table, floor" \\
    MODEL.CLIP.NAME ViT-L-14-quickgelu MODEL.CLIP.PRETRAINED openai

The last needs no training: it is CLIP itself, any that tagclip can read.
Pictures show the image, its segments, their confidence and the trusty map;
classes with a star count as unseen: by the split of the training or, in another
list, by their names (MODEL.TAGCLIP.TEST.UNKNOWN_CLASSES). Images are read as in
training: upright, without transparency. A file that cannot be read is listed at
the end, with exit code 1; finished pictures are not made again. A video that
SIGTERM or Ctrl-C ends is whole up to that frame.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tagclip.errors import CheckpointError, ConfigError
from tagclip.utils.cli import check_output, check_processes, run_tool
from tagclip.utils.tool_parser import (
    MOST_PROCESSES,
    NOT_OF_INFERENCE,
    NumberIn,
    ToolParser,
    add_vocabulary_options,
)

# detectron2 is imported inside the functions: --help answers at once.
if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from tagclip.predictor import TagCLIPPredictor

logger = logging.getLogger("tagclip.demo")

# Where tagclip minibench leaves its model, and where pictures go that nobody has named a place for.
MINIBENCH, OUTPUT = Path("output/minibench/model_final.pth"), Path("segmented")
# On MiniBench's validation set it rejects 80 % of the unlabelled clutter and 10 % of what is right.
BACKGROUND = 0.1
AUTO = "auto"
# What segments without training, and its config.
METHODS = ("maskclip", "sclip", "clearclip", "naclip")
METHOD_CONFIG = "trainingfree/Base-AnyWords.yaml"


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    # argparse would not break the line of the class lists.
    parser = ToolParser(__doc__, usage="%(prog)s IMAGE ... [options] [KEY VALUE ...]")
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="images, folders, globs, or one video")
    add("--input", nargs="+", default=[], metavar="IMAGE", help="the same")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--video-input", metavar="FILE", help="a video, whatever its name")
    source.add_argument("--webcam", action="store_true", help="first camera, until q or Ctrl-C")
    add_model_options(parser)
    add(
        "--output", type=Path, metavar="PATH",
        help="folder, NAME.png, NAME.mp4 or NAME.webm (default: a window for videos where there is "
        f"a display, else {OUTPUT})",
    )  # fmt: skip
    add(
        "--save-labels", action="store_true",
        help="write class ids (of words: 0 to K-1), too: NAME_labels.png; of videos "
        "NAME_labels/FRAME.png",
    )  # fmt: skip
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="write what is on each, and ids and names of the classes, as a COCO json",
    )
    add("--no-draw", action="store_true", help="no pictures: labels or the json alone")
    add(
        "--panel-size",
        type=NumberIn(int, 24, 10000),
        default=512,
        help="longer side of a panel in pixels",
    )
    add("--overwrite", action="store_true", help="make finished pictures again, or a video")
    add(
        "--num-gpus",
        type=NumberIn(int, 1, MOST_PROCESSES),
        default=1,
        help="processes, one per GPU",
    )
    add(
        "--workers",
        "--processes",
        dest="processes",
        type=NumberIn(int, 1, MOST_PROCESSES),
        default=1,
        help="processes on the CPU",
    )
    parser.add_config_keys(unread=NOT_OF_INFERENCE)
    return parser


def add_model_options(parser: ToolParser) -> None:
    """Add the options that `build_predictor` reads: model and words."""
    parser.add_config_file(use="instead of that of the weights")
    absent = f"the last of OUTPUT_DIR; without --config-file {MINIBENCH}"
    parser.add_weights("the model", absent, default="")
    parser.add_argument(
        "--method", choices=METHODS, help="instead of a trained model: CLIP alone, read in this way"
    )
    add_vocabulary_options(parser)
    parser.add_argument(
        "--context",
        metavar="NAMES",
        help="more names (file, dataset) that compete and are shown as other",
    )
    parser.add_argument(
        "--background", "--confidence-threshold", nargs="?", type=_background, const=BACKGROUND,
        metavar="THRESHOLD", help="call pixels with a lower score other (%(const)s); auto: those "
        "that no word fits (TEST.BACKGROUND)",
    )  # fmt: skip


def check_output_dir(parser: ToolParser, args: argparse.Namespace) -> None:
    """Refuse an OUTPUT_DIR that is not read, where it could be taken for the place of results.

    Args:
        parser: of the command line.
        args: with the options of `add_model_options`.
    """
    keys = args.opts[::2]
    is_read = args.config_file and not (args.weights or args.method or "MODEL.WEIGHTS" in keys)
    if "OUTPUT_DIR" in keys and not is_read:
        parser.error(
            "OUTPUT_DIR: names the run whose last checkpoint is taken, with --config-file and "
            "without --weights; leave it out: results go to --output"
        )


def _background(text: str) -> float | str:
    try:
        return text if text == AUTO else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number or {AUTO}") from None


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    parsed = parser.parse_args(args)
    if parsed.no_draw and parser.given(args, "panel_size"):
        parser.error("--panel-size: does nothing with --no-draw, leave one of them out")
    if len(parser.given(args, "num_gpus", "processes")) > 1:
        parser.error("--num-gpus, --workers: processes on GPUs or on the CPU, leave out one")
    check_output_dir(parser, parsed)
    parsed.of_images = parser.given(args, "num_gpus", "processes")
    parsed.input = [*parsed.images, *parsed.input]
    if bool(parsed.input) == bool(parsed.video_input or parsed.webcam):
        parser.error("expected either images, --video-input or --webcam")
    if parsed.video_input:
        parsed.input = [parsed.video_input]
    return parsed


def main(args: argparse.Namespace) -> int:
    """Segment and draw; return the exit code.

    Raises:
        TagCLIPError: an option, the config, the weights or the vocabulary are not in order.
    """
    import tagclip

    tagclip.register()

    from detectron2.utils.logger import setup_logger

    from tagclip.demo.images import draw_images
    from tagclip.demo.media import has_display, is_video
    from tagclip.demo.videos import draw_video

    setup_logger(name="tagclip")
    check_processes(args.num_gpus)
    videos = (
        [] if args.webcam else [path for path in args.input if args.video_input or is_video(path)]
    )
    if videos and len(args.input) > 1:
        raise ConfigError(f"IMAGE: found {videos[0]} among others, expected one video alone")
    is_moving = args.webcam or bool(videos)
    if is_moving and args.of_images:
        raise ConfigError(
            f"{args.of_images[0]}: found {'--webcam' if args.webcam else videos[0]}, expected "
            f"images: a video is made in one process; leave {args.of_images[0]} out"
        )
    if args.no_draw and not (args.save_labels or args.json):
        raise ConfigError(
            "--no-draw: found neither --save-labels nor --json, expected one, as nothing else is "
            "written"
        )
    if args.no_draw and args.output is not None and not args.save_labels:
        raise ConfigError(
            f"--output: found {args.output} with --no-draw and without --save-labels, expected "
            "something to write there; leave it out"
        )
    is_shown = is_moving and not args.save_labels and has_display()
    if args.output is None and (args.save_labels or not (args.no_draw or is_shown)):
        args.output = OUTPUT
        logger.info("Output: %s, as there is no --output", OUTPUT)
    if args.output is not None:
        is_folder = not args.output.suffix or args.output.is_dir()
        check_output("--output", args.output, is_folder)
    if args.json is not None:
        check_output("--json", args.json)
    if is_moving:
        draw_video(args, 0 if args.webcam else videos[0], build_predictor)
        return 0
    processes = args.num_gpus if args.num_gpus > 1 else args.processes
    errors = draw_images(args, build_predictor, processes)
    failed = [error for error in errors if error]
    if failed:
        print(f"{len(failed)} of {len(errors)} images failed:", file=sys.stderr)
        print("\n".join(f"  {error}" for error in failed), file=sys.stderr)
    return 1 if failed else 0


def build_predictor(args: argparse.Namespace, device: str = "") -> TagCLIPPredictor:
    """Load the model and set the vocabulary.

    Args:
        args: with the options of `add_model_options`, and config keys.
        device: overrides MODEL.DEVICE.

    Raises:
        TagCLIPError: the config, the weights or the vocabulary are not in order.
    """
    from tagclip import TagCLIPPredictor
    from tagclip.structures.vocabulary_words import read_asked, read_words

    cfg = build_config(args, ["MODEL.DEVICE", device] if device else [])
    try:
        predictor = TagCLIPPredictor(cfg)
    except CheckpointError as error:
        # What CLIP lacks is no reason to train.
        if cfg.MODEL.WEIGHTS or not str(error).startswith("MODEL.WEIGHTS"):
            raise
        raise CheckpointError(
            f"{error}; {cfg.OUTPUT_DIR} (OUTPUT_DIR) holds no last_checkpoint either: run tagclip "
            "minibench or tagclip train, or give --weights"
        ) from error
    names = predictor.dataset_names
    vocabulary = read_asked(args, names)
    context = None if args.context is None else read_words(args.context, args.dedup, datasets=names)
    predictor.set_vocabulary(
        predictor.vocabulary if vocabulary is None else vocabulary, context=context
    )
    if not predictor.can_be_other:
        logger.info(
            "Every pixel gets one of %d classes; --context or --background make room for others",
            len(predictor.vocabulary),
        )
    return predictor


def build_config(args: argparse.Namespace, opts: Sequence[str]) -> CfgNode:
    """Config of --config-file, or of the checkpoint; its MODEL.WEIGHTS is the checkpoint."""
    from tagclip import load_config
    from tagclip.checkpoint import checkpoint_config, last_checkpoint

    opts = [*args.opts, *opts, *_background_keys(args)]
    if args.weights:
        opts += ["MODEL.WEIGHTS", args.weights]
    weights = dict(zip(opts[0::2], opts[1::2], strict=False)).get("MODEL.WEIGHTS")
    if args.method:
        if given := args.config_file or weights:
            raise ConfigError(
                f"--method: found {given}, too, expected no trained model and no config: "
                f"{args.method} is CLIP alone; leave one of them out"
            )
        if "MODEL.CLIP.LAST_BLOCK" in opts[0::2]:
            raise ConfigError(
                f"--method: found {args.method} and MODEL.CLIP.LAST_BLOCK, expected one of "
                "them, as they say the same; leave out the key"
            )
        return load_config(METHOD_CONFIG, ["MODEL.CLIP.LAST_BLOCK", args.method, *opts])
    if not args.config_file:
        if not weights and not MINIBENCH.is_file():
            raise ConfigError(
                f"--weights, --config-file: found neither, and no {MINIBENCH}, expected a model; "
                "run tagclip minibench, or give --weights"
            )
        if not weights:
            weights = str(MINIBENCH)
            logger.info("Weights: %s, as there is no --weights", weights)
        return checkpoint_config(weights, opts)
    cfg = load_config(args.config_file, opts)
    if not cfg.MODEL.WEIGHTS and (last := last_checkpoint(cfg.OUTPUT_DIR)):
        cfg.MODEL.WEIGHTS = last
        logger.info("Weights: %s, the last of OUTPUT_DIR", cfg.MODEL.WEIGHTS)
    return cfg


def _background_keys(args: argparse.Namespace) -> list[str]:
    """What --background says, as config keys and values."""
    if args.background is None:
        return []
    keys = [f"MODEL.TAGCLIP.TEST.{name}" for name in ("BACKGROUND", "BACKGROUND_THRESHOLD")]
    if twice := [key for key in keys if key in args.opts[0::2]]:
        raise ConfigError(
            f"--background: found {args.background} and {twice[0]}, expected one of them, as they "
            "say the same; leave out the key"
        )
    is_auto = args.background == AUTO
    values = (AUTO, "0") if is_auto else ("threshold", str(args.background))
    return [word for pair in zip(keys, values, strict=True) for word in pair]


def run(args: argparse.Namespace) -> None:
    """Draw and end with the exit code."""
    sys.exit(main(args))


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(run, parse_args())


if __name__ == "__main__":
    invoke_main()
