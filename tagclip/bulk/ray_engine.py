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
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from tagclip.utils.text import json_text, one_line

__all__ = ["run_ray"]

logger = logging.getLogger(__name__)

# Images that are given on together, at most.
_PART = 16
# So many processes may begin with a shard, a part or a model: Ray itself would try for ever.
_ATTEMPTS = 5
# Where a traceback comes to one of our errors.
_OUR_ERROR = re.compile(rf"^\s*tagclip\.errors\.({'|'.join(errors.__all__)}): (.+)$", re.MULTILINE)
# Seconds for a cluster to answer: Ray itself waits for minutes.
_PATIENCE = 10


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
    if not shards:
        return
    with _parts(options.output) as parts, _cluster() as ray, _one_line(ray):
        job = _Job(options, parts)
        rows = _dataset(ray, shards, job, device, actors).iter_rows()
        yield from _results(ray, shards, job, rows, report)


@dataclass(frozen=True)
class _Job:
    """What all processes of the cluster know.

    Attributes:
        options: of the run.
        parts: the folder where rows wait until those of their shard are whole. It is another one
            each time: processes of a run that was killed find theirs gone.
    """

    options: BulkOptions
    parts: Path


@contextmanager
def _parts(output: Path) -> Iterator[Path]:
    """A folder for parts, removed in the end, and after a kill by the next run."""
    parts = output / f".parts.{secrets.token_hex(4)}.tmp"
    with writing_output(output):
        parts.mkdir()
    try:
        yield parts
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def _results(
    ray: ModuleType,
    shards: Sequence[Shard],
    job: _Job,
    rows: Iterable[Mapping[str, Any]],
    report: Callable[[int], None],
) -> Iterator[ShardResult]:
    """Join what the dataset gives."""
    states = {shard.name: _State(shard) for shard in shards}
    # It waits for the disk only, and all CPUs may be the actors'.
    join = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(_join)
    joining: list[Any] = []
    for row in rows:
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
            joining.append(join.remote(state.shard, job, state.result, sorted(state.parts)))
        done = ray.wait(joining, num_returns=len(joining), timeout=0)[0] if joining else []
        yield from _joined(ray, job, done)
        joining = [reference for reference in joining if reference not in done]
    yield from _joined(ray, job, joining)


def _joined(ray: ModuleType, job: _Job, references: Sequence[Any]) -> Iterator[ShardResult]:
    """Results of `_join`; the parts go when nobody can need them again."""
    for reference in references:
        result = ray.get(reference)
        shutil.rmtree(job.parts / result.name, ignore_errors=True)
        yield result


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
    ray: ModuleType, shards: Sequence[Shard], job: _Job, device: str, actors: int | None
) -> Any:
    """Ray's dataset of one row per part: ``shard``, ``first``, ``images``, ``total`` (-1 where it
    is not known), ``failed``, ``errors`` (json) and ``error``, why there will be no shard."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if device.startswith("cuda") else 0
    # What an autoscaling cluster begins with may be nothing.
    actors = actors or gpus or max(1, int(resources.get("CPU", 1)))
    plans = [{"plan": json_text([shard.name, shard.members])} for shard in shards]
    rows = ray.data.from_items(plans, override_num_blocks=len(plans))
    read = partial(_read, job=job, prepare=ImagePreparer.from_config(job.options.cfg))
    rows = rows.map_batches(read, batch_size=1).map_batches(
        _Model,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        fn_constructor_args=(job, "cuda" if gpus else "cpu"),
        # Where they need no GPU, they need what `read` needs, and Ray joins the two.
        num_gpus=1 if gpus else None,
    )
    # Its own: the caller's stays.
    rows.context.enable_progress_bars = False
    # Blocks are handed on part by part.
    rows.context.target_max_block_size = 1
    return rows


def _read(batch: Mapping[str, Any], job: _Job, prepare: ImagePreparer) -> Iterator[dict[str, Any]]:
    """Read one shard, part by part: ``shard``, ``first``, ``items``, ``total``, ``error``."""
    cv2.setNumThreads(1)
    name, members = json.loads(batch["plan"][0])
    shard = Shard(name, tuple(InputFile(*member) for member in members))
    row = {"shard": [name], "items": _boxed([]), "total": [-1], "error": [""]}
    first, part = 0, []
    try:
        _begin(job, name, f"{name}: it")
        for item in read_items(shard, job.options, prepare):
            if len(part) == _PART or sum(map(_nbytes, part)) > job.options.budget:
                yield {**row, "first": [first], "items": _boxed(part)}
                first, part = first + len(part), []
            part.append(item)
        yield {**row, "first": [first], "items": _boxed(part), "total": [first + len(part)]}
    except DatasetError as error:
        yield {**row, "first": [first], "error": [f"{name}: {error}"]}
    except ProcessError as error:
        yield {**row, "first": [first], "error": [str(error)]}


def _boxed(value: Any) -> np.ndarray:
    """A column with one Python object."""
    column = np.empty(1, object)
    column[0] = value
    return column


def _nbytes(item: Item) -> int:
    return item[1].nbytes if isinstance(item[1], PreparedImage) else 0


def _begin(job: _Job, name: str, what: str) -> Path:
    """Count who begins with something.

    Args:
        job: see `_Job`.
        name: of it, below the folder of parts.
        what: it is, for the message.

    Returns:
        The file of the count, of one byte for each.

    Raises:
        ConfigError: this node does not see the folder of the run, or cannot write there.
        ProcessError: there were too many: it is it that ends them.
    """
    if not job.parts.is_dir():
        raise ConfigError(
            f"--output {job.options.output}: node {socket.gethostname()} does not see what others "
            "write there, expected a folder that all nodes of the cluster share; choose one"
        )
    count = job.parts / f"{name}.tries"
    with writing_output(job.options.output):
        count.parent.mkdir(exist_ok=True)
        with count.open("ab") as file:
            file.write(b".")
    if count.stat().st_size > _ATTEMPTS:
        raise ProcessError(
            f"{what} has ended {_ATTEMPTS} processes, perhaps for lack of memory; look for it in "
            "Ray's logs and start again: finished shards stay"
        )
    return count


class _Model:
    """What an actor does."""

    def __init__(self, job: _Job, device: str) -> None:
        """Build the model.

        Raises:
            TagCLIPError: see `BulkWorker` and `_begin`.
        """
        import ray

        # An actor that Ray starts again keeps its id.
        name = ray.get_runtime_context().get_actor_id()
        count = _begin(job, name, "--engine ray: the model")
        torch.set_num_threads(1)
        self.job, self.worker = job, BulkWorker(job.options, device)
        count.unlink()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Make the rows of one part; returns a row of `_dataset`."""
        row = {name: batch[name] for name in ("shard", "first", "total", "error")}
        texts: list[str] = []
        if not batch["error"][0]:
            try:
                texts = self._write(batch["shard"][0], int(batch["first"][0]), batch["items"][0])
            except ProcessError as error:
                row["error"] = [str(error)]
        told = json_text(texts[:MOST_ERRORS])
        images = [len(batch["items"][0])]
        return {**row, "images": images, "failed": [len(texts)], "errors": [told]}

    def _write(self, shard: str, first: int, items: Sequence[Item]) -> list[str]:
        """Write the file of a part; returns its errors."""
        path, output = _part_path(self.job, shard, first), self.job.options.output
        what = f"{shard}: one of its images {first + 1} to {first + len(items)}"
        _begin(self.job, f"{shard}/{path.stem}", what)
        with (
            writing_output(output),
            RowWriter(path, "parquet", self.job.options.settings.labels, {}) as writer,
        ):
            errors = []
            for row in self.worker.rows(items):
                writer.write(row)
                errors += [row["error"]] * (row["error"] is not None)
        return errors


def _part_path(job: _Job, shard: str, first: int) -> Path:
    return job.parts / shard / f"{first:09}.parquet"


def _join(shard: Shard, job: _Job, result: ShardResult, firsts: Sequence[int]) -> ShardResult:
    """Write the file of a shard from its parts."""
    settings, output = job.options.settings, job.options.output
    path, metadata = output / settings.output_of(shard), settings.metadata_of(shard)
    with (
        writing_output(output),
        RowWriter(path, settings.format, settings.labels, metadata) as writer,
    ):
        for first in firsts:
            for row in read_rows(_part_path(job, shard.name, first)):
                writer.write(row)
    return result


@contextmanager
def _cluster() -> Iterator[ModuleType]:
    """Ray, connected; what was connected before stays so."""
    import ray
    import ray.data

    is_ours = not ray.is_initialized()
    if is_ours:
        # Where Ray's users have not decided, nothing is told to anyone, and its C++ part, which
        # writes straight to stderr, is silent.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        address = os.environ.get("RAY_ADDRESS", "")
        try:
            _check_listens(address)
            with _silent_stderr():
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


def _check_listens(address: str) -> None:
    """Raise an OSError where ``HOST:PORT`` does not answer."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep off it that the C++ part has been told to be silent."""
    before = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@contextmanager
def _one_line(ray: ModuleType) -> Iterator[None]:
    """Make of what a task or an actor raised the error that it was."""
    try:
        yield
    except ray.exceptions.RayError as error:
        # A traceback as text.
        text = str(error)
        if ours := _OUR_ERROR.findall(text):
            kind, message = ours[-1]
            raise getattr(errors, kind)(message) from error
        last = (text.strip() or repr(error)).splitlines()[-1]
        raise ProcessError(
            f"--engine ray: {type(error).__name__}: {one_line(last)}; Ray's logs may say more, "
            "finished shards stay"
        ) from error
