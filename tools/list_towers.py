#!/usr/bin/env python
"""List the image-text models of the installed open_clip, and which can be used.

tagclip towers
tagclip towers siglip2 webli
tagclip towers --markdown
tagclip towers --cost

A name is for MODEL.CLIP.NAME, a tag for MODEL.CLIP.PRETRAINED. What is refused
has its reason. --cost measures the image towers of the configs towers/*.yaml
with random weights: parameters, multiply-adds, patches, seconds of a window.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tagclip.utils.cli import run_tool
from tagclip.utils.text import json_text
from tagclip.utils.tool_parser import ToolParser

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from tagclip.modeling.clip.towers import Tower

_HEADER = ("name", "image tower", "pixels", "dim", "text tower", "tokenizer", "tags", "here")
_COSTS = ("config", "CLIP", "window", "patches", "parameters (M)", "multiply-adds (G)",
          "CPU seconds")  # fmt: skip
_REPEATS = 3


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="only models with all of these in name or tags"
    )
    parser.add_argument("--markdown", action="store_true", help="print a table of docs/towers.md")
    parser.add_argument("--json", action="store_true", help="print json")
    parser.add_argument(
        "--cost",
        action="store_true",
        help="measure the image towers of the configs towers/voc_*.yaml instead; takes minutes",
    )
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    args = parser.parse_args(args)
    if args.json and (args.markdown or args.cost):
        parser.error("--json: give it without --markdown and --cost")
    return args


def main(args: argparse.Namespace) -> None:
    """Print a table."""
    from tagclip.errors import ConfigError

    if args.cost:
        configs = costed(args.words)
        if not configs:
            raise ConfigError(
                f"{' '.join(args.words)}: found no config towers/voc_*.yaml with these words "
                "in its name or its CLIP's, expected one at least; tagclip configs lists them"
            )
        print(f"{machine()}, one thread, float32, random weights; median of {_REPEATS}\n")
        for line in table(_COSTS, costs(configs), args.markdown):
            print(line, flush=True)
        return
    from dataclasses import asdict

    from tagclip.modeling.clip.towers import list_towers

    towers = list(list_towers(args.words))
    if not towers:
        raise ConfigError(
            f"{' '.join(args.words)}: found no model of open_clip with these words in its name or "
            "tags, expected one at least; tagclip towers lists all"
        )
    if args.json:
        print(json_text([asdict(tower) for tower in towers], indent=1))
        return
    for line in table(_HEADER, map(row, towers), args.markdown):
        print(line)
    accepted = sum(not tower.refused for tower in towers)
    print(f"\n{len(towers)} models of open_clip {version()}: {accepted} accepted, "
          f"{len(towers) - accepted} refused")  # fmt: skip


def row(tower: Tower) -> list[str]:
    """One row of the list."""
    height, width = tower.size
    return [
        tower.name,
        tower.image,
        str(height) if height == width else f"{height}x{width}",
        str(tower.dim),
        tower.text,
        tower.tokenizer or "CLIP's",
        ", ".join(tower.tags) or "none",
        f"refused: {tower.refused}" if tower.refused else "yes",
    ]


def table(header: Sequence[str], rows: Iterable[list[str]], markdown: bool) -> Iterator[str]:
    """Lines of a table; plain ones come as soon as their rows do."""
    if markdown:
        yield f"| {' | '.join(header)} |"
        yield "|---" * len(header) + "|"
        yield from (f"| {' | '.join(cells)} |" for cells in rows)
        return
    yield "  ".join(header)
    yield from ("  ".join(cells) for cells in rows)


def version() -> str:
    """Version of the installed open_clip."""
    from importlib.metadata import version

    return version("open_clip_torch")


def machine() -> str:
    """Name of the processor and version of torch."""
    import torch

    from tagclip.projects.benchmark.measure import processor

    return f"{processor()}, torch {torch.__version__}"


def costed(words: Sequence[str]) -> dict[str, CfgNode]:
    """Configs towers/voc_*.yaml with all words in their names or those of their CLIPs."""
    from tagclip import load_config, model_zoo
    from tagclip.modeling.clip.config import open_clip_spelling

    opts = ["MODEL.CLIP.PRETRAINED", "", "MODEL.DEVICE", "cpu"]
    configs = {n: load_config(n, opts) for n in model_zoo.list() if n.startswith("towers/voc_")}
    texts = {n: open_clip_spelling(f"{n} {cfg.MODEL.CLIP.NAME}") for n, cfg in configs.items()}
    words = [open_clip_spelling(word).lower() for word in words]
    return {n: cfg for n, cfg in configs.items() if all(w in texts[n].lower() for w in words)}


def costs(configs: Mapping[str, CfgNode]) -> Iterator[list[str]]:
    """One row for every config."""
    import torch
    from detectron2.modeling import build_backbone

    from tagclip.analysis.model_cost import ModelAnalysis

    torch.set_num_threads(1)
    for name, cfg in configs.items():
        net = build_backbone(cfg).eval()
        side = -(-cfg.INPUT.MIN_SIZE_TEST // net.patch_size) * net.patch_size
        image = torch.randn(1, 3, side, side)
        counts = ModelAnalysis(cfg).forward_macs(1, (side, side))
        macs = sum(count for part, count in counts.items() if part.startswith("backbone"))
        with torch.no_grad():
            net(image)
            seconds = sorted(_seconds(net, image) for _ in range(_REPEATS))[_REPEATS // 2]
        parameters = sum(p.numel() for p in net.parameters() if not p.requires_grad)
        yield [
            name,
            cfg.MODEL.CLIP.NAME,
            f"{side}x{side}",
            f"{side // net.patch_size}x{side // net.patch_size}",
            f"{parameters / 1e6:.1f}",
            f"{macs / 1e9:.1f}",
            f"{seconds:.2f}",
        ]


def _seconds(net: object, image: object) -> float:
    start = time.process_time()
    net(image)
    return time.process_time() - start


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
