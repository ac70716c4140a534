#!/usr/bin/env python
"""Convert checkpoints of the released TagCLIP and of ZegCLIP, or CLIP weights.

tagclip convert iter_20000.pth tagclip_voc.pth --config-file CONFIG
tagclip convert iter_20000.pth tagclip_voc.pth --clip-out clip.safetensors
tagclip convert ViT-B-16.pt clip.safetensors
tagclip convert model_final.pth full.pth --full --config-file CONFIG
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from tagclip.errors import ConfigError
from tagclip.projects import import_projects
from tagclip.utils.cli import run_tool
from tagclip.utils.tool_parser import ToolParser


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_argument(
        "source",
        metavar="IN",
        type=Path,
        help="mmseg checkpoint of TagCLIP or ZegCLIP (.pth), a checkpoint of ours (with --full), "
        "OpenAI's archive, open_clip's .pt, .bin or .safetensors, or a folder in the Hugging Face "
        "layout",
    )
    parser.add_argument(
        "target",
        metavar="OUT",
        type=Path,
        help=".pth for a checkpoint, .safetensors or .pt for CLIP weights",
    )
    parser.add_config_file(use="whose model the checkpoint has to fit")
    parser.add_argument(
        "--clip-out",
        type=Path,
        metavar="FILE",
        help="write the frozen CLIP weights of an mmseg checkpoint (.safetensors or .pt) and their "
        "model json",
    )
    parser.add_argument(
        "--full", action="store_true", help="store the frozen weights of the vision tower, too"
    )
    parser.add_argument(
        "--sha256",
        type=_checksum,
        metavar="HEX",
        help="expected of IN; a TorchScript archive that is not one of OpenAI's needs it",
    )
    parser.add_config_keys()
    return parser


def _checksum(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(
            f"found {text!r:.80}, expected the 64 hexadecimal digits that sha256sum prints"
        )
    return text.lower()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    return make_parser().parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    """Convert, and print what was kept, dropped and recorded."""
    from tagclip import load_config
    from tagclip.checkpoint.conversion.files import convert_file

    cfg = None
    if args.config_file:
        cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
        import_projects(cfg.PROJECTS)
    elif args.opts:
        raise ConfigError(
            f"config keys: found {' '.join(args.opts)} without --config-file; name the config"
        )
    lines = convert_file(
        args.source,
        args.target,
        cfg=cfg,
        clip_target=args.clip_out or "",
        full=args.full,
        sha256=args.sha256 or "",
    )
    print("\n".join(lines))


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_arguments())


if __name__ == "__main__":
    invoke_main()
