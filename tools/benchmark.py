#!/usr/bin/env python
"""Measure time and memory beside the bare ViT and the released operations.

tagclip benchmark           # all parts but the curves: some ten minutes
tagclip benchmark --part inference training --runs 5
tagclip benchmark --quick   # everything on tiny sizes: does it run?
tagclip benchmark --curves --write PERFORMANCE.md --images docs/images
tagclip benchmark --device cuda --json | tail -n 1 > gpu.json
tagclip benchmark --merge gpu.json --write PERFORMANCE.md

ViT-B/16 with random weights, 100 prompts per layer, 171 classes: nothing is
downloaded. Parts: vit (ours and open_clip's), inference and training by stage,
text (encoding and cache), evaluator, large (4000x3000, 847 classes), labels
(colour masks), kernel (registers of the fused GPU kernel), fusion (logits to
labels), relative (the trusty map that compares classes, and other lists of
words), precision (bfloat16 beside float32), int8 (exported files, CPU), loading
(training samples from files), drawing (the demo's pictures), startup (from the
start of a process to a mask), bulk (20,000 small images), throughput. The
machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagclip.errors import ConfigError
from tagclip.utils.cli import check_output, run_tool
from tagclip.utils.files import temporary_folder, write_atomic
from tagclip.utils.text import error_text, json_text
from tagclip.utils.tool_parser import MOST_PROCESSES, NumberIn, ToolParser

# detectron2 is imported inside the functions: --help answers at once.
if TYPE_CHECKING:
    from tagclip.projects.benchmark.curves import CostCurve

PART_NAMES = (
    *("vit", "inference", "training", "text", "evaluator", "large", "labels", "kernel"),
    *("fusion", "relative", "precision", "int8", "loading", "drawing", "startup", "bulk"),
    "throughput",
)


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_argument(
        "--part",
        nargs="+",
        choices=PART_NAMES,
        default=PART_NAMES,
        metavar="PART",
        help="default: all",
    )
    parser.add_argument("--curves", action="store_true", help="scaling curves: five minutes more")
    parser.add_argument(
        "--runs", type=NumberIn(int, 1, 10**6), default=5, help="timed runs of each"
    )
    parser.add_argument(
        "--threads", type=NumberIn(int, 1, MOST_PROCESSES), default=2, help="CPU threads"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it runs")
    parser.add_weights(
        "trained model: of the labels that part precision compares, and of part bulk", default=""
    )
    parser.add_argument(
        "--base",
        default="",
        metavar="FOLDER",
        help="another checkout, whose tools/demo.py part startup runs in turn, by the Python of "
        "its .venv if it has one",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: numbers mean nothing")
    parser.add_argument("--json", action="store_true", help="results as the last line of stdout")
    parser.add_argument(
        "--write", type=Path, metavar="FILE.md", help="write the tables, both devices' columns"
    )
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="write the pictures of --curves"
    )
    parser.add_argument(
        "--merge", type=Path, metavar="FILE.json", help="result of the other device"
    )
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    parsed = parser.parse_args(args)
    if len(set(parsed.part)) < len(parsed.part):
        parser.error(f"--part: found {' '.join(parsed.part)}, expected each part once")
    for option, value, parts in (
        ("--weights", parsed.weights, ("precision", "bulk")),
        ("--base", parsed.base, ("startup",)),
    ):
        if value and not set(parts) & set(parsed.part):
            parser.error(f"{option} is of {' and '.join(parts)}, which --part leaves out")
    if parsed.images and not parsed.curves:
        parser.error("--images: found no --curves, whose pictures these are; give both or none")
    if parsed.curves and not (parsed.images or parsed.json):
        parser.error("--curves: expected --images, which shows them, or --json")
    if parsed.merge and not parsed.write:
        parser.error("--merge: found no --write, whose tables it is for; give both or none")
    return parsed


def main(args: argparse.Namespace) -> None:
    """Measure, print and write.

    Raises:
        TagCLIPError: there is no GPU, or a file cannot be read or written.
    """
    from tagclip.projects.benchmark.report import format_text

    _check(args)
    other = _read(args.merge, args.device) if args.merge else None
    result, curves = measure(args)
    print(format_text(result))
    files = _draw(args, curves, result) if curves and args.images else {}
    if args.write:
        _write(args, result, other, files)
    if args.json:
        print(json_text(result), flush=True)


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[CostCurve]]:
    """Run the parts.

    Returns:
        A tree of plain values: ``machine``, ``rows``, ``bars`` and ``curves``, and the curves.
    """
    import torch

    from tagclip.projects.benchmark.benchmarks import BENCHMARKS
    from tagclip.projects.benchmark.curves import measure_curves
    from tagclip.projects.benchmark.measure import machine
    from tagclip.projects.benchmark.workload import FULL, QUICK, Workload
    from tagclip.utils.quiet import silence

    torch.set_num_threads(args.threads)
    rows, bars, curves = [], [], []
    # Random weights, encoded names: what is normal here need not be told.
    with silence(logging.WARNING), temporary_folder() as folder:
        place = folder / "dataset"
        place.mkdir()
        workload = Workload(QUICK if args.quick else FULL, args.device, place)
        workload.weights, workload.base = args.weights, args.base
        for name in args.part:
            print(f"{name} ...", file=sys.stderr, flush=True)
            found = BENCHMARKS[name](workload, args.runs)
            rows += found.rows
            bars += found.bars
        if args.curves:
            curves = measure_curves(workload, folder)
        described = machine(args.device)
    scale = "tiny sizes (numbers mean nothing)" if args.quick else "ViT-B/16, COCO-Stuff"
    result = {
        "machine": {"scale": scale} | described,
        "rows": rows,
        "bars": bars,
        "curves": [asdict(curve) for curve in curves],
    }
    return result, curves


def _check(args: argparse.Namespace) -> None:
    import torch

    from tagclip.checkpoint import checkpoint_config
    from tagclip.export.onnx import require_onnx

    if args.write:
        check_output("--write", args.write)
    if args.images:
        check_output("--images", args.images, is_folder=True)
    if args.weights:
        checkpoint_config(args.weights, [])

    if args.base and not Path(args.base, "tools", "demo.py").is_file():
        raise ConfigError(f"--base {args.base}: found no tools/demo.py, expected a checkout")
    if "int8" in args.part:
        require_onnx()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device: found no GPU, expected one for cuda; use --device cpu")


def _read(path: Path, device: str) -> dict[str, Any]:
    """The result of the other device than this one, which tables can be made of."""
    from tagclip.projects.benchmark.report import format_markdown
    from tagclip.utils.untrusted import load_json

    try:
        result = load_json(path.read_text(encoding="utf-8"))
        of_cpu = {"cpu": True, "cuda": False}[result["machine"]["device"]]
        format_markdown(*((result, None) if of_cpu else (None, result)), {})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--merge {path}: found no result of this tool ({error_text(error)}), "
            "expected the last line that --json prints"
        ) from error
    if result["machine"]["device"] == device:
        raise ConfigError(
            f"--merge {path}: found a result of {device}, too, expected one of the other device; "
            "leave it out, or name another --device"
        )
    return result


def _draw(
    args: argparse.Namespace, curves: list[CostCurve], result: Mapping[str, Any]
) -> dict[str, Path]:
    """Axis -> file."""
    from tagclip.projects.benchmark.curves import draw

    machine = result["machine"]
    note = ", ".join(f"{key} {machine[key]}" for key in ("processor", "threads", "load", "torch"))
    return draw(curves, args.images, note)


def _write(
    args: argparse.Namespace,
    result: Mapping[str, Any],
    other: Mapping[str, Any] | None,
    files: Mapping[str, Path],
) -> None:
    from tagclip.projects.benchmark.report import format_markdown

    by_device = {found["machine"]["device"]: found for found in (other, result) if found}
    path = args.write
    pictures = {
        axis: Path(os.path.relpath(file, path.parent)).as_posix() for axis, file in files.items()
    }
    text = format_markdown(by_device.get("cpu"), by_device.get("cuda"), pictures)
    try:
        write_atomic(path, text)
    except OSError as error:
        raise ConfigError(f"--write {path}: cannot be written ({error.strerror})") from error
    print(f"Written: {path}")


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
