"""Shards of a bulk run on a Ray cluster: its CPUs read, decode and resize, actors hold the models.

Ray Data moves the images: a task per shard gives them on in parts of some images, an actor turns
each part into rows, and a file of its own below the folder of the run, which all nodes share. Where
all parts of a shard are there, they are joined to its file, the bytes of which are those that a
local process writes. On a cluster without GPUs Ray makes one step of reading and model: an actor
reads for itself, while its model works.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch

from tagclip import errors
from tagclip.bulk.inputs import InputFile
from tagclip.bulk.manifest import writing_output
from tagclip.bulk.shards import MOST_ERRORS, Shard, ShardResult
from tagclip.bulk.worker import BulkOptions, BulkWorker, Item, read_items
from tagclip.data.prepared_image import ImagePreparer, PreparedImage
from tagclip.errors import ConfigError, DatasetError, ProcessError
from tagclip.evaluation.segment_rows import RowWriter, read_rows
from tagclip.utils.cli import error_line
from tagclip.utils.text import json_text, one_line

__all__ = ["run_ray"]

logger = logging.getLogger(__name__)

# Images that are given on together, at most.
_PART = 16
# Where parts are kept until their shard is whole.
_PARTS = ".parts"
# At one shard or part, that processes may begin: Ray itself would try for ever.
_ATTEMPTS = 10


def run_ray(
    shards: Sequence[Shard],
    options: BulkOptions,
    device: str,
    actors: int | None,
    report: Callable[[int], None],
) -> Iterator[ShardResult]:
    """Do shards on the cluster that RAY_ADDRESS names, or on one that is this machine.

    Args:
        shards: none of them finished.
        options: of the run; its folder and the images are at the same places on all nodes.
        device: ``cuda`` means the cluster's GPUs, if it has some, one for each actor.
        actors: how many have a model; None: one for each GPU, else for each CPU.
        report: is told how many images came since the last call.

    Yields:
        What became of each shard, in the order of their ends.

    Raises:
        TagCLIPError: an actor cannot build the model, the results cannot be written, or a node does
            not see their folder.
        ProcessError: the cluster cannot be reached, or one part ends actors again and again.
    """
    parts = options.output / _PARTS
    with _cluster() as ray, _one_line(ray):
        # Of a run that was killed.
        shutil.rmtree(parts, ignore_errors=True)
        try:
            yield from _results(ray, shards, options, device, actors, report)
        finally:
            shutil.rmtree(parts, ignore_errors=True)


def _results(
    ray: ModuleType,
    shards: Sequence[Shard],
    options: BulkOptions,
    device: str,
    actors: int | None,
    report: Callable[[int], None],
) -> Iterator[ShardResult]:
    states = {shard.name: _State(shard) for shard in shards}
    # It waits for the disk only, and all CPUs may be the actors'.
    join = ray.remote(num_cpus=0)(_join)
    joining: list[Any] = []
    for row in _dataset(ray, shards, options, device, actors).iter_rows():
        state = states[row["shard"]]
        if state.is_done:
            # Parts that came after an error, or twice.
            continue
        if row["error"]:
            state.is_done = True
            report(-state.images)
            yield ShardResult(state.shard.name, error=row["error"])
            continue
        report(state.add(row))
        if state.images == state.total:
            state.is_done = True
            joining.append(join.remote(state.shard, options, state.result, sorted(state.parts)))
        done, joining = (
            ray.wait(joining, num_returns=len(joining), timeout=0) if joining else ([], [])
        )
        yield from ray.get(done)
    yield from ray.get(joining)


class _State:
    """What is known of a shard whose parts arrive, in any order."""

    def __init__(self, shard: Shard) -> None:
        self.shard, self.is_done = shard, False
        self.parts: dict[int, Mapping[str, Any]] = {}
        self.images, self.total = 0, -1

    def add(self, row: Mapping[str, Any]) -> int:
        """Take note of a part; how many images are new."""
        if row["first"] in self.parts:
            return 0
        self.parts[row["first"]] = row
        self.images += row["images"]
        self.total = max(self.total, row["total"])
        return row["images"]

    @property
    def result(self) -> ShardResult:
        rows = [self.parts[first] for first in sorted(self.parts)]
        texts = [text for row in rows for text in json.loads(row["errors"])]
        failed = sum(row["failed"] for row in rows)
        return ShardResult(self.shard.name, self.images, failed, tuple(texts[:MOST_ERRORS]))


def _dataset(
    ray: ModuleType, shards: Sequence[Shard], options: BulkOptions, device: str, actors: int | None
) -> Any:
    """Ray's dataset of one row per part: ``shard``, ``first``, ``images``, ``total`` (-1 where it
    is not known), ``failed``, ``errors`` (json) and ``error``, why there will be no shard."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if device.startswith("cuda") else 0
    actors = actors or gpus or max(1, int(resources["CPU"]))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Blocks are handed on, and done again after a death, part by part.
    context.target_max_block_size = 1
    plans = [{"plan": json_text([shard.name, shard.members])} for shard in shards]
    rows = ray.data.from_items(plans, override_num_blocks=len(plans))
    read = partial(_read, options=options, prepare=ImagePreparer.from_config(options.cfg))
    return rows.map_batches(read, batch_size=1).map_batches(
        _Model,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        fn_constructor_args=(options, "cuda" if gpus else "cpu"),
        # Where they need no GPU, they need what `read` needs, and Ray joins the two.
        num_gpus=1 if gpus else None,
    )


def _read(
    batch: Mapping[str, Any], options: BulkOptions, prepare: ImagePreparer
) -> Iterator[dict[str, Any]]:
    """Read one shard, part by part: ``shard``, ``first``, ``items``, ``total``, ``error``."""
    cv2.setNumThreads(1)
    name, members = json.loads(batch["plan"][0])
    shard = Shard(name, tuple(InputFile(*member) for member in members))
    row = {"shard": [name], "items": _boxed([]), "total": [-1], "error": [""]}
    first, part = 0, []
    try:
        _begin(options, name)
        for item in read_items(shard, options, prepare):
            if len(part) == _PART or sum(map(_nbytes, part)) > options.memory:
                yield {**row, "first": [first], "items": _boxed(part)}
                first, part = first + len(part), []
            part.append(item)
        yield {**row, "first": [first], "items": _boxed(part), "total": [first + len(part)]}
    except DatasetError as error:
        yield {**row, "first": [first], "error": [f"{name}: {error}"]}


def _boxed(value: Any) -> np.ndarray:
    """A column with one Python object."""
    column = np.empty(1, object)
    column[0] = value
    return column


def _nbytes(item: Item) -> int:
    return item[1].nbytes if isinstance(item[1], PreparedImage) else 0


def _begin(options: BulkOptions, shard: str, first: int | None = None) -> Path:
    """Count who begins with a shard, or with a part of it; the place of the part.

    Raises:
        ProcessError: there were too many: it is it that ends them.
    """
    # Of this run: an actor of one that was killed may still be writing.
    folder = options.output / _PARTS / options.settings.run[:8] / shard
    part = folder / ("reading" if first is None else f"{first:09}.parquet")
    tries = part.with_suffix(".tries")
    with writing_output(options.output):
        folder.mkdir(parents=True, exist_ok=True)
        with tries.open("ab") as file:
            file.write(b".")
    if tries.stat().st_size > _ATTEMPTS:
        where = "" if first is None else f" behind image {first}"
        raise ProcessError(
            f"{shard}: ended {_ATTEMPTS} processes{where}, perhaps for lack of memory; look for it "
            "in Ray's logs, give it more, or leave its images out: finished shards stay"
        )
    return part


class _Model:
    """What an actor does."""

    def __init__(self, options: BulkOptions, device: str) -> None:
        """Build the model.

        Raises:
            TagCLIPError: see `BulkWorker`, or this node does not see the folder of the run.
        """
        if not (options.output / "manifest.json").is_file():
            raise ConfigError(
                f"--output {options.output}: node {socket.gethostname()} does not see it, expected "
                "a folder that all nodes of the cluster share; choose one"
            )
        torch.set_num_threads(1)
        self.worker = BulkWorker(options, device)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Make the rows of one part; returns a row of `_dataset`."""
        row = {name: batch[name] for name in ("shard", "first", "total", "error")}
        options, items, texts = self.worker.options, batch["items"][0], []
        if not batch["error"][0]:
            path = _begin(options, batch["shard"][0], int(batch["first"][0]))
            with (
                writing_output(options.output),
                RowWriter(path, "parquet", options.settings.labels, {}) as writer,
            ):
                for found in self.worker.rows(items):
                    writer.write(found)
                    texts += [found["error"]] * (found["error"] is not None)
        told = json_text(texts[:MOST_ERRORS])
        return {**row, "images": [len(items)], "failed": [len(texts)], "errors": [told]}


def _join(
    shard: Shard, options: BulkOptions, result: ShardResult, firsts: Sequence[int]
) -> ShardResult:
    """Write the file of a shard from its parts, and remove these."""
    settings, output = options.settings, options.output
    path, metadata = output / settings.output_of(shard), settings.metadata_of(shard)
    parts = output / _PARTS / settings.run[:8] / shard.name
    with (
        writing_output(output),
        RowWriter(path, settings.format, settings.labels, metadata) as writer,
    ):
        for first in firsts:
            for row in read_rows(parts / f"{first:09}.parquet"):
                writer.write(row)
    shutil.rmtree(parts, ignore_errors=True)
    return result


@contextmanager
def _cluster() -> Iterator[ModuleType]:
    """Ray, connected; what was connected before stays so."""
    # Where Ray's users have not decided, nothing is told to anyone.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its C++ part writes straight to stderr.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    is_ours = not ray.is_initialized()
    if is_ours:
        address = os.environ.get("RAY_ADDRESS")
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:
            where = f"RAY_ADDRESS {address}" if address else "--engine ray"
            raise ProcessError(
                f"{where}: no cluster can be reached ({one_line(error)}); start one, or take "
                "--engine local"
            ) from error
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()


@contextmanager
def _one_line(ray: ModuleType) -> Iterator[None]:
    """Make of what a task or an actor raised the error that it was."""
    try:
        yield
    except (ray.exceptions.RayError, errors.TagCLIPError) as error:
        # "KIND: text", also where it is but the end of a traceback.
        kind, _, text = (error_line(error) or f"ProcessError: {one_line(error)}").partition(": ")
        raise getattr(errors, kind)(text) from error
