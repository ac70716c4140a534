#!/usr/bin/env python
"""Serve a web page: an image, any words, and sliders for what follows the model.

tagclip webdemo
tagclip webdemo --weights model_final.pth --examples photos/ --port 8080
"""

from __future__ import annotations

import argparse
import ctypes
import ipaddress
import signal
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tagclip.errors import CheckpointError, ConfigError
from tagclip.tools.demo import MINIBENCH
from tagclip.utils.cli import run_tool
from tagclip.utils.tool_parser import NOT_OF_INFERENCE, NumberIn, ToolParser

# detectron2 is imported inside the functions: --help answers at once.
if TYPE_CHECKING:
    from tagclip.predictor import TagCLIPPredictor
    from tagclip.projects.webdemo.session import Limits

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
    add("--port", type=NumberIn(int, 1, 65535), default=7860, help="of the server")
    add(
        "--allow-host",
        action="append",
        default=[],
        type=_host,
        metavar="NAME",
        help="answer to this name, too, such as that of a proxy in front; may be given again",
    )
    add(
        "--proxy",
        action="append",
        default=[],
        type=_address,
        metavar="ADDRESS",
        help="of a server in front, whose X-Forwarded-For is believed; may be given again",
    )
    add("--max-upload-mb", type=NumberIn(int, 1, 10**6), default=20, metavar="MB", help="file size")
    add(
        "--max-uploads-mb",
        type=NumberIn(int, 1, 10**9),
        default=1000,
        metavar="MB",
        help=("all files that visitors have brought; a tenth of it for each address"),
    )
    add("--max-words", type=NumberIn(int, 1, 250), default=200, help="per image")
    add(
        "--max-windows",
        type=NumberIn(int, 1, 10**6),
        default=32,
        help="per image, that the model sees",
    )
    add(
        "--max-seconds",
        type=NumberIn(int, 1, 10**6),
        default=60,
        help="per request, waiting included",
    )
    add(
        "--max-memory-mb",
        type=NumberIn(int, 1, 10**9),
        default=2048,
        metavar="MB",
        help=("of all requests at work; one may take half of it"),
    )
    add(
        "--max-kept-mb",
        type=NumberIn(int, 1, 10**9),
        default=64,
        metavar="MB",
        help=("of all images with their scores; one may take half of it"),
    )
    parser.add_config_keys(unread=[*NOT_OF_INFERENCE, "OUTPUT_DIR", "MODEL.WEIGHTS"])
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    parsed = parser.parse_args(args)
    if parsed.max_uploads_mb < parsed.max_upload_mb:
        parser.error("--max-uploads-mb: expected at least --max-upload-mb, the size of one file")
    return parsed


def _host(text: str) -> str:
    from tagclip.projects.webdemo.doors import HOST

    if not HOST.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"found {text!r:.80}, expected a name without http:// and path, such as demo.example"
        )
    return text


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"found {text!r:.80}, expected an address such as 10.0.0.1"
        ) from None


def give_memory_back() -> None:
    """Let what is freed of pictures go to the system at once, where the C library is glibc.

    It would keep blocks of up to 32 MiB of each thread, a gigabyte and more after large pictures;
    planes of a picture as it is shown have 2 MB.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        # M_MMAP_THRESHOLD and M_ARENA_MAX of malloc.h.
        libc.mallopt(-3, 2 << 20)
        libc.mallopt(-8, 2)


def check_limits(predictor: TagCLIPPredictor, limits: Limits) -> None:
    """Refuse limits that no image keeps to: the page would answer nothing but that.

    Raises:
        ConfigError: one is too low.
    """
    from tagclip.projects.webdemo.session import least_limits

    least = least_limits(predictor)
    for name, option, unit in (
        ("windows", "--max-windows", 1),
        ("memory", "--max-memory-mb", 1 << 20),
        ("kept", "--max-kept-mb", 1 << 20),
    ):
        found, expected = getattr(limits, name), getattr(least, name)
        if found < expected:
            raise ConfigError(
                f"{option}: found {found // unit}, expected at least {-(-expected // unit)}, for "
                "a small square image and one word; give more"
            )


def main(args: argparse.Namespace) -> None:
    """Load the model once and serve until Ctrl-C or SIGTERM.

    Raises:
        TagCLIPError: gradio or the weights are missing, or an option does not make sense.
    """
    from detectron2.utils.logger import setup_logger

    from tagclip import TagCLIPPredictor
    from tagclip.projects.webdemo.page_folder import page_folder
    from tagclip.projects.webdemo.reading import started_reading
    from tagclip.projects.webdemo.server import find_examples, serve
    from tagclip.projects.webdemo.session import Limits
    from tagclip.projects.webdemo.temporary import TemporaryFiles
    from tagclip.utils.run_lock import LOCK_NAME
    from tagclip.utils.sockets import check_sockets

    if find_spec("gradio") is None:
        raise ConfigError("gradio: not installed, the page needs it; run: pip install gradio")
    if not Path(args.weights).is_file() and args.weights == WEIGHTS:
        raise CheckpointError(
            f"{WEIGHTS}: no such file; run tagclip minibench, or name a checkpoint with --weights"
        )
    check_sockets("processes that read pictures are started")
    setup_logger(name="tagclip")
    give_memory_back()
    predictor = TagCLIPPredictor.from_checkpoint(args.weights, [*OPTS, *args.opts])
    limits = Limits(
        words=args.max_words,
        windows=args.max_windows,
        seconds=args.max_seconds,
        memory=args.max_memory_mb << 20,
        kept=args.max_kept_mb << 20,
    )
    check_limits(predictor, limits)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with page_folder() as folder, started_reading() as sockets:
        examples = find_examples(predictor, args.examples, folder)
        others = [folder.parent / LOCK_NAME, *(Path(path) for path, _ in examples)]
        serve(
            predictor,
            examples,
            folder,
            host=args.host,
            port=args.port,
            max_upload_mb=args.max_upload_mb,
            max_uploads_mb=args.max_uploads_mb,
            allowed_hosts=args.allow_host,
            proxies=args.proxy,
            limits=limits,
            files=TemporaryFiles([folder.parent, folder, *sockets], others),
        )


def invoke_main() -> None:
    """Parse the command line and serve."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
