#!/usr/bin/env python
"""Segment very many images; a run that is broken off goes on where it was.

tagclip bulk photos/ --output out/ --vocab "cat, table" --context coco_stuff_val
tagclip bulk "archive/**/*.jpg" --output out/ --vocab-file words.json
tagclip bulk shards/ --output out/ --vocab "cat, table" --format webdataset
tagclip bulk data.parquet --output out/ --vocab "cat, table" --processes 8

INPUT: folders, globs, .txt files with a path per line, tar (webdataset) and
parquet files. What is on each image goes to DIR/segments: a file per shard of
--shard-size images, or per tar or parquet file; a row per image, in the order
of the input. The same command again does what is missing: shards that a kill
left out, and images that were added (in new shards) or have another size, also
those that a parquet file names by their paths. It is refused with another
model, other words or another gate. A broken image is a row with its error,
listed at the end, with exit code 1.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tagclip.errors import ConfigError, NotInstalledError, TagCLIPError
from tagclip.tools import demo
from tagclip.utils.cli import check_output, run_tool
from tagclip.utils.stopping import explained
from tagclip.utils.text import counted
from tagclip.utils.tool_parser import MOST_PROCESSES, NOT_OF_INFERENCE, NumberIn, ToolParser

# detectron2 is imported inside the functions: --help answers at once.
if TYPE_CHECKING:
    from tagclip.bulk.inputs import InputFile
    from tagclip.bulk.manifest import BulkFolder
    from tagclip.bulk.shards import Shard, ShardResult
    from tagclip.bulk.worker import BulkOptions

logger = logging.getLogger("tagclip.bulk")


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__, usage="%(prog)s INPUT ... --output DIR [options] [KEY VALUE ...]")
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="folders, globs, lists, tar or parquet files")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of this run alone")
    demo.add_model_options(parser)
    add("--format", choices=("parquet", "webdataset"), default="parquet", help="of the rows")
    add("--labels", action="store_true", help="rows hold the label map as a PNG, too")
    add(
        "--column", default="", metavar="NAME",
        help="of parquet files, the images: bytes or paths (default: image, bytes, jpg, path ...)",
    )  # fmt: skip
    add("--id-column", default="", metavar="NAME", help="of parquet files (default: row numbers)")
    add(
        "--shard-size",
        type=NumberIn(int, 1, 10**9),
        help="images per new shard (default: 1000, or that of the run)",
    )
    add("--engine", choices=("local", "ray"), default="local", help="this machine, or a cluster")
    add(
        "--processes",
        type=NumberIn(int, 1, MOST_PROCESSES),
        help="with a model each (default: GPUs, else CPU cores)",
    )
    add(
        "--memory", type=NumberIn(int, 1, 2**24), default=512, metavar="MIB",
        help="decoded images that wait for the model, per process",
    )  # fmt: skip
    add("--overwrite", action="store_true", help="remove the results that are there, do it all")
    parser.add_config_keys(unread=NOT_OF_INFERENCE)
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    parsed = parser.parse_args(args)
    demo.check_output_dir(parser, parsed)
    return parsed


def main(args: argparse.Namespace) -> int:
    """Segment; return the exit code.

    Raises:
        TagCLIPError: an option, an input, the config, the weights or the vocabulary are not in
            order, or the output is another run's, in use, or cannot be written.
    """
    import tagclip

    tagclip.register()

    from detectron2.utils.logger import setup_logger

    from tagclip.bulk.inputs import find_inputs
    from tagclip.bulk.manifest import check_ours
    from tagclip.bulk.members import with_image_sizes
    from tagclip.bulk.summary import write_summary
    from tagclip.evaluation.segment_rows import require_pyarrow
    from tagclip.utils.run_lock import RunLock

    setup_logger(name="tagclip")
    if args.format == "parquet":
        require_pyarrow()
    run_engine = _engine(args)
    check_output("--output", args.output, is_folder=True)
    files = find_inputs(args.inputs, args.output)
    _check_columns(args, files)
    check_ours(args.output)
    files = [with_image_sizes(file, args.column) for file in files]
    with RunLock(args.output):
        options, folder = _open(args)
        folder.plan(files, args.inputs, options.asked.shown, args.shard_size)
        try:
            results = list(_run(folder, options, run_engine))
        finally:
            folder.remove_leftovers()
        folder.set_counts({result.name: result.images for result in results if not result.error})
        page = write_summary(args.output, folder.shards, options.settings)
        logger.info("Classes, examples and failures: %s", page)
    return _report(results, args.output)


def _check_columns(args: argparse.Namespace, files: Sequence[InputFile]) -> None:
    from tagclip.bulk.inputs import input_kind
    from tagclip.bulk.manifest import MANIFEST

    asked = {"--column": args.column, "--id-column": args.id_column}
    given = [option for option, name in asked.items() if name]
    # Those of a run that goes on may be gone.
    goes_on = not args.overwrite and (args.output / MANIFEST).exists()
    if given and not goes_on and all(input_kind(file.path) != "parquet" for file in files):
        raise ConfigError(
            f"{given[0]}: found no parquet file among {counted(len(files), 'input')}, expected "
            f"one; leave {' and '.join(given)} out, or name parquet files"
        )


Engine = Callable[["list[Shard]", "BulkOptions", Callable[[int], None]], "Iterator[ShardResult]"]


def _engine(args: argparse.Namespace) -> Engine:
    """What does shards."""
    if args.engine == "ray":
        if find_spec("ray") is None:
            raise NotInstalledError(
                "--engine ray: found no ray, expected the package; run: pip install "
                "'tagclip[bulk]', or take --engine local"
            )
        from tagclip.bulk.ray_engine import run_ray

        device = demo.build_config(args, []).MODEL.DEVICE
        return lambda shards, options, report: run_ray(
            shards, options, device, args.processes, report
        )

    from tagclip.bulk.local import run_local

    devices = local_devices(args)
    # A GPU is faster than one thread that decodes; cores have work for all of their time.
    threads = max(1, _cores() // len(devices)) if devices[0].startswith("cuda") else 1
    return lambda shards, options, report: run_local(
        shards, replace(options, threads=threads), devices, report
    )


def local_devices(args: argparse.Namespace) -> list[str]:
    """MODEL.DEVICE of each local process."""
    import torch

    gpus = torch.cuda.device_count()
    device = demo.build_config(args, []).MODEL.DEVICE if gpus else "cpu"
    if device == "cuda":
        return [f"cuda:{index % gpus}" for index in range(args.processes or gpus)]
    return [device] * (args.processes or (1 if device.startswith("cuda") else _cores()))


def _cores() -> int:
    """Cores that this process may use; not every system can limit them."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _open(args: argparse.Namespace) -> tuple[BulkOptions, BulkFolder]:
    """Look at model and words, in this process on the CPU, and at what the folder holds."""
    from tagclip.bulk.manifest import BulkFolder, BulkSettings, fingerprints
    from tagclip.bulk.worker import BulkOptions

    predictor = demo.build_predictor(args, "cpu")
    prints = fingerprints(predictor)
    settings = BulkSettings(prints, args.format, args.labels, args.column, args.id_column)
    folder = BulkFolder(args.output, settings, args.overwrite)
    cfg = predictor.cfg.clone()
    cfg.defrost()
    # On another machine of a cluster the working folder is another.
    cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS and str(Path(cfg.MODEL.WEIGHTS).absolute())
    output, memory = args.output.absolute(), args.memory << 20
    return BulkOptions(cfg, predictor.asked, settings, output, memory), folder


def _run(folder: BulkFolder, options: BulkOptions, run_engine: Engine) -> Iterator[ShardResult]:
    """Results of all shards, those of earlier runs first."""
    from tagclip.bulk.progress import Progress
    from tagclip.utils.run_lock import RunLock

    left = []
    for shard in folder.shards:
        result = folder.finished(shard)
        if result is None:
            left.append(shard)
        else:
            yield result
    total = len(folder.shards)
    logger.info("To be done: %d of %s, in %s", len(left), counted(total, "shard"), folder.path)
    if not left:
        return
    progress = Progress(left)
    try:
        for result in run_engine(left, options, progress.images):
            # The processes that write hold no lock.
            RunLock.check_held(folder.path)
            progress.shard(result)
            yield result
    except TagCLIPError:
        # Where the folder has gone, they cannot write, either.
        RunLock.check_held(folder.path)
        raise
    finally:
        progress.close()


def _report(results: Sequence[ShardResult], output: Path) -> int:
    """Say what there is now; return the exit code."""
    from tagclip.bulk.shards import MOST_ERRORS

    broken = [result.error for result in results if result.error]
    images, failed = (sum(getattr(r, name) for r in results) for name in ("images", "failed"))
    shards = counted(len(results) - len(broken), "shard")
    logger.info("%s in %s, in %s", counted(images, "image"), shards, output)
    errors = [error for result in results for error in result.errors][:MOST_ERRORS]
    if failed:
        print(f"{failed} of {counted(images, 'image')} failed:", file=sys.stderr)
        more = [f"and {failed - len(errors)} more"] if failed > len(errors) else []
        print("\n".join(f"  {text}" for text in (*errors, *more)), file=sys.stderr)
    if broken:
        print(f"{len(broken)} of {counted(len(results), 'shard')} failed:", file=sys.stderr)
        print("\n".join(f"  {text}" for text in broken), file=sys.stderr)
    return 1 if failed or broken else 0


def run(args: argparse.Namespace) -> None:
    """Segment and end with the exit code."""
    with explained("finished shards stay, the same command goes on with the others"):
        sys.exit(main(args))


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(run, parse_args())


if __name__ == "__main__":
    invoke_main()
