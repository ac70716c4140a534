#!/usr/bin/env python
"""Serve a web page: an image, any words, and sliders for what follows the model.

tagclip webdemo
tagclip webdemo --weights model_final.pth --examples photos/ --port 8080
"""

from __future__ import annotations

import argparse
import signal
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tagclip.errors import CheckpointError, ConfigError
from tagclip.tools.demo import MINIBENCH
from tagclip.utils.cli import run_tool
from tagclip.utils.tool_parser import ToolParser

# detectron2 is imported inside the functions: --help answers at once.

WEIGHTS = str(MINIBENCH)
# Visitors bring anything: smaller images than elsewhere, and no folder that grows with their words.
# Others have their turn between batches of prompts.
OPTS = ["INPUT.MAX_PIXELS", "25000000", "MODEL.CLIP.TEXT_CACHE", "", "MODEL.CLIP.TEXT_BATCH", "32"]


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    add = parser.add_argument
    parser.add_weights("the model", default=WEIGHTS)
    add("--examples", metavar="FOLDER", help="images to try; MiniBench's models bring their own")
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine only)")
    add("--port", type=int, default=7860, help="of the server")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer to this name, too, such as that of a proxy in front; may be given again",
    )
    add("--max-upload-mb", type=int, default=20, metavar="MB", help="file size")
    add(
        "--max-uploads-mb",
        type=int,
        default=1000,
        metavar="MB",
        help=("all files that visitors have brought; a tenth of it for each address"),
    )
    add("--max-words", type=int, default=200, help="per image, at most 250")
    add("--max-windows", type=int, default=32, help="per image, that the model sees")
    add("--max-seconds", type=int, default=60, help="per request, waiting included")
    add(
        "--max-memory-mb",
        type=int,
        default=2048,
        metavar="MB",
        help=("of all requests at work; one may take half of it"),
    )
    add(
        "--max-kept-mb",
        type=int,
        default=64,
        metavar="MB",
        help=("of all images with their scores; one may take half of it"),
    )
    parser.add_config_keys()
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    return make_parser().parse_args(args)


def main(args: argparse.Namespace) -> None:
    """Load the model once and serve until Ctrl-C or SIGTERM.

    Raises:
        TagCLIPError: gradio or the weights are missing, or an option does not make sense.
    """
    from detectron2.utils.logger import setup_logger

    from tagclip import TagCLIPPredictor
    from tagclip.projects.webdemo.server import find_examples, serve
    from tagclip.projects.webdemo.session import Limits

    if find_spec("gradio") is None:
        raise ConfigError("gradio: not installed, the page needs it; run: pip install gradio")
    if not Path(args.weights).is_file() and args.weights == WEIGHTS:
        raise CheckpointError(
            f"{WEIGHTS}: no such file; run tagclip minibench, or name a checkpoint with --weights"
        )
    for name in ("uploads_mb", "windows", "seconds", "memory_mb", "kept_mb"):
        if (value := getattr(args, f"max_{name}")) < 1:
            option = f"--max-{name.replace('_', '-')}"
            raise ConfigError(f"{option}: found {value}, expected at least 1; give a larger one")
    if not 1 <= args.max_words <= 250 or args.max_upload_mb < 1 or not 1 <= args.port <= 65535:
        raise ConfigError(
            f"--max-words, --max-upload-mb, --port: found {args.max_words}, {args.max_upload_mb}, "
            f"{args.port}, expected 1 to 250, at least 1, 1 to 65535"
        )
    setup_logger(name="tagclip")
    predictor = TagCLIPPredictor.from_checkpoint(args.weights, [*OPTS, *args.opts])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="tagclip-webdemo-") as folder:
        serve(
            predictor,
            find_examples(predictor, args.examples, Path(folder)),
            Path(folder),
            host=args.host,
            port=args.port,
            max_upload_mb=args.max_upload_mb,
            max_uploads_mb=args.max_uploads_mb,
            allowed_hosts=args.allow_host,
            limits=Limits(
                words=args.max_words,
                windows=args.max_windows,
                seconds=args.max_seconds,
                memory=args.max_memory_mb << 20,
                kept=args.max_kept_mb << 20,
            ),
        )


def invoke_main() -> None:
    """Parse the command line and serve."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
