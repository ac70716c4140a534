"""Very many small images: `tagclip bulk` beside a plain loop, two processes beside one, memory."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import torch

from tagclip import TagCLIPPredictor
from tagclip.bulk import worker as bulk_worker
from tagclip.bulk.inputs import InputFile, find_inputs
from tagclip.bulk.local import run_local
from tagclip.bulk.manifest import BulkSettings
from tagclip.bulk.shards import Shard, plan_shards
from tagclip.bulk.worker import BulkOptions, BulkWorker
from tagclip.data.prepared_image import ImagePreparer
from tagclip.evaluation.segment_rows import RowWriter
from tagclip.projects.benchmark.findings import Findings
from tagclip.projects.benchmark.measure import Stopwatch, Timing, resident
from tagclip.projects.benchmark.startup import WORDS, untrained_checkpoint
from tagclip.projects.benchmark.workload import Workload

__all__ = ["bulk"]

# (height, width) in pixels, in turn.
_SIZES = ((96, 128), (128, 96), (112, 112))
# Pairs of neighbours, for each of the runs.
_PAIRS = 4
# Shares of the images before which all processes have a model, and after which one may be idle.
_FROM, _TO = 0.25, 0.9
# Looks at the memory.
_LOOKS = 100


def bulk(workload: Workload, runs: int) -> Findings:
    """MiniBench's model, trained or with random weights, on small images; a thread per process."""
    folder = Path(workload.image).parent.parent / "bulk"
    images = workload.scale.bulk_images
    _write_images(folder / "images", images)
    weights = workload.weights or untrained_checkpoint(folder)
    options = _options(weights, folder / "out", workload.device)
    files = find_inputs([str(folder / "images")], options.output)
    found = Findings("bulk")
    with _one_thread():
        _add_loop(found, options, files[: max(2, images // 200)], _PAIRS * runs)
        _add_processes(found, options, files[: images // 5], runs)
        if Path("/proc/self/status").exists():
            _add_memory(found, options, files)
    return found


def _add_loop(
    found: Findings, options: BulkOptions, files: Sequence[InputFile], pairs: int
) -> None:
    """One process on one core, where nothing is done at the same time."""
    with _one_core():
        worker, paths = BulkWorker(options), [file.path for file in files]
        watch, shards = _CPUStopwatch(), count()
        spent: dict[str, list[tuple[float, float]]] = {"a plain loop": [], "bulk": []}
        functions: dict[str, Callable[[], None]] = {
            "a plain loop": partial(_loop, worker.predictor, paths),
            "bulk": lambda: _do(worker, Shard(f"shard-{next(shards):06}", tuple(files)), watch),
        }
        for _ in range(pairs + 1):
            for name, function in functions.items():
                start = time.perf_counter(), time.process_time()
                function()
                wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
                spent[name].append((wall / len(files), cpu / len(files)))
    # The first run of each warms up.
    times = {
        name: [Timing(column) for column in zip(*rows[1:], strict=True)]
        for name, rows in spent.items()
    }
    for name, (wall, cpu) in times.items():
        found.add(f"{name}, per image, one core", wall)
        found.add(f"{name}, per image, one core: CPU time", cpu)
    (wall, cpu), (loop_wall, loop_cpu) = times["bulk"], times["a plain loop"]
    ratio = found.add("bulk over a plain loop", wall.over(loop_wall), "x")
    found.add("bulk over a plain loop, CPU time", cpu.over(loop_cpu), "x")
    found.add_bar("bulk, one core: time over a loop of predictor(image)", ratio, "x", 1 / 0.97)
    for stage, timing in watch.timings().items():
        each = Timing(tuple(seconds / len(files) for seconds in timing.runs))
        found.add(f"of it, CPU time: {stage}", each)
    idle = Timing(tuple(a - b for a, b in zip(wall.runs, cpu.runs, strict=True)))
    found.add("of it, without the CPU", idle)


def _loop(predictor: TagCLIPPredictor, paths: Sequence[str]) -> None:
    for path in paths:
        predictor(path)


def _do(worker: BulkWorker, shard: Shard, watch: Stopwatch) -> None:
    stages = (
        (bulk_worker, "prepare_image", "read, decode, resize"),
        (ImagePreparer, "nbytes", "read, decode, resize"),
        (bulk_worker, "prediction_row", "rows and RLE"),
        *((RowWriter, name, "write") for name in ("__enter__", "write", "__exit__")),
    )
    with ExitStack() as stack:
        for owner, method, stage in stages:
            stack.enter_context(watch.watch(owner, method, stage))
        watch.run(lambda: worker.do(shard, lambda _: None), "model, from tensors to labels")


class _CPUStopwatch(Stopwatch):
    """Of the thread that is in a method; of the whole, of all threads."""

    def now(self) -> float:
        return time.thread_time()

    def total(self) -> float:
        return time.process_time()


def _add_processes(
    found: Findings, options: BulkOptions, files: Sequence[InputFile], runs: int
) -> None:
    rates: dict[int, list[float]] = {1: [], 2: []}
    for run in range(runs):
        for processes, own in rates.items():
            output = options.output / f"run{run}" / f"processes{processes}"
            moments = _run(replace(options, output=output), files, processes, lambda: None)
            first, last = (moments[int(share * len(files)) - 1] for share in (_FROM, _TO))
            own.append((last - first) / ((_TO - _FROM) * len(files)))
    one, two = (Timing(tuple(own)) for own in rates.values())
    found.add("bulk, one process, per image", one)
    found.add("bulk, two processes, per image", two)
    ratio = found.add("two processes over one", two.over(one), "x")
    found.add_bar("bulk, two processes: time over that of one", ratio, "x", 1 / 1.8)


def _add_memory(found: Findings, options: BulkOptions, files: Sequence[InputFile]) -> None:
    largest: list[tuple[float, float]] = []

    def look() -> None:
        children = [resident(child.pid) for child in multiprocessing.active_children() if child.pid]
        largest.append((max(children, default=0.0), resident(os.getpid())))

    _run(replace(options, output=options.output / "memory"), files, 2, look)
    quarter = max(1, len(largest) // 4)
    for name, values in zip(
        ("a process", "the main process"), zip(*largest, strict=True), strict=True
    ):
        first, last = max(values[:quarter]), max(values[-quarter:])
        what = f"{len(files)} images: most memory of {name}"
        found.add(f"{what}, first quarter", first, "MiB")
        found.add(f"{what}, last quarter", last, "MiB")
        found.add_bar(f"{what}, last over first quarter", last / first, "x", 1.05)


def _run(
    options: BulkOptions, files: Sequence[InputFile], processes: int, look: Callable[[], None]
) -> list[float]:
    """Do all images in shards of a fortieth; returns the moment of each."""
    moments: list[float] = []

    def report(images: int) -> None:
        moments.extend([time.perf_counter()] * images)
        if not len(moments) % max(1, len(files) // _LOOKS):
            look()

    shards = plan_shards(files, (), max(1, len(files) // 40))
    devices = [options.cfg.MODEL.DEVICE] * processes
    for result in run_local(shards, options, devices, report):
        assert not result.error and not result.failed, result
    return moments


def _options(weights: str, output: Path, device: str) -> BulkOptions:
    predictor = TagCLIPPredictor.from_checkpoint(weights, ["MODEL.DEVICE", device])
    predictor.set_vocabulary([word.strip() for word in WORDS.split(",")])
    return BulkOptions(predictor.cfg, predictor.asked, BulkSettings({}), output)


def _write_images(folder: Path, number: int) -> None:
    """JPEGs of soft blobs."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(number):
        height, width = _SIZES[index % len(_SIZES)]
        blobs = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{index:06}.jpg"), cv2.resize(blobs, (width, height)))


@contextmanager
def _one_thread() -> Iterator[None]:
    """As each process of the engine has."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


@contextmanager
def _one_core() -> Iterator[None]:
    """Where the system can keep a process on one."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
