"""tagclip/bulk/local.py: any number of processes, the same bytes; what dies is done again."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.bulk import content_of, make_options, write_images, write_tar

from tagclip.bulk.inputs import find_inputs
from tagclip.bulk.local import run_local
from tagclip.bulk.manifest import BulkFolder
from tagclip.bulk.shards import ShardResult
from tagclip.bulk.worker import BulkOptions
from tagclip.errors import CheckpointError, ConfigError, ProcessError

IMAGES, SIZE = 9, 2


@pytest.fixture
def options(weights: Path, tmp_path: Path) -> BulkOptions:
    """Of a run on nine images and a tar without any."""
    write_images(tmp_path / "in", IMAGES)
    write_tar(tmp_path / "in" / "none.tar", [])
    return make_options(weights, tmp_path / "out", labels=True)


def run(
    options: BulkOptions, processes: int, report: Callable[[int], None] = lambda count: None
) -> Iterator[ShardResult]:
    """Do what is missing."""
    folder = BulkFolder(options.output, options.settings)
    source = options.output.parent / "in"
    folder.plan(find_inputs([str(source)], options.output), [], options.asked.shown, SIZE)
    left = [shard for shard in folder.shards if not folder.finished(shard)]
    yield from run_local(left, options, ["cpu"] * processes, report)
    folder.remove_leftovers()


def kill_one(seed: int) -> None:
    """End one of the processes that work."""
    children = multiprocessing.active_children()
    child = random.Random(seed).choice(children)
    os.kill(child.pid, signal.SIGKILL)
    child.join()


def test_processes_write_the_same_bytes_and_count_all(options: BulkOptions, tmp_path: Path) -> None:
    counts: list[int] = []
    results = list(run(options, 1, counts.append))
    assert [result.name for result in results] == [f"shard-{number:06}" for number in range(6)]
    assert [result.images for result in results] == [2, 2, 2, 2, 1, 0]
    assert sum(counts) == IMAGES
    assert results[5].error.startswith(f"shard-000005: {tmp_path}/in/none.tar: found no image")
    other = replace(options, output=tmp_path / "other")
    assert sorted(run(other, 2)) == sorted(results)
    assert content_of(other.output) == content_of(options.output)
    # Shards that are finished start no process; the other one is tried again.
    assert list(run(options, 2)) == [results[5]]
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_shard_that_kills_two_processes_is_given_up(options: BulkOptions) -> None:
    kills, total = [], 0

    def report(count: int) -> None:
        nonlocal total
        total += count
        if count > 0 and len(kills) < 2:
            kills.append(count)
            kill_one(0)

    results = {result.name: result for result in run(options, 1, report)}
    error = "shard-000000: 2 processes ended (SIGKILL); the log above may say why"
    assert results["shard-000000"] == ("shard-000000", 0, 0, (), error)
    assert [result.images for result in results.values()].count(2) == 3
    # What was taken back.
    assert total == IMAGES - 2
    assert next(run(options, 1)).images == 2


class Deadly:
    """Ends the process that reads it."""

    def __reduce__(self) -> tuple:
        return os._exit, (3,)


def test_processes_that_die_before_they_have_a_model_are_the_end(options: BulkOptions) -> None:
    with pytest.raises(ProcessError) as caught:
        list(run(replace(options, threads=Deadly()), 2))
    assert str(caught.value).startswith("--processes: they end (exit code 3) before they have a")
    assert not multiprocessing.active_children()


def test_an_error_of_a_process_is_that_of_the_run(options: BulkOptions) -> None:
    cfg = options.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = "missing.pth"
    with pytest.raises(CheckpointError, match="missing.pth"):
        list(run(replace(options, cfg=cfg), 2))
    (options.output / "segments" / "shard-000001.parquet").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        list(run(options, 1))
    assert not multiprocessing.active_children()


def test_an_interruption_is_for_the_main_process_which_ends_the_others(
    options: BulkOptions,
) -> None:
    def blocks_interruptions(pid: int | str) -> bool:
        mask = re.search(r"^SigBlk:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)[1]
        return bool(int(mask, 16) >> (signal.SIGINT - 1) & 1)

    def report(count: int) -> None:
        children = multiprocessing.active_children()
        assert [blocks_interruptions(child.pid) for child in children] == [True, True]
        assert not blocks_interruptions("self")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run(options, 2, report))
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_process_changes_nothing(options: BulkOptions, tmp_path: Path, seed: int) -> None:
    """At a moment that the seed draws from all images."""
    list(run(replace(options, output=tmp_path / "whole"), 1))
    moment, count, killed = random.Random(seed).randint(1, IMAGES), 0, False

    def report(change: int) -> None:
        nonlocal count, killed
        count += change
        if count == moment and not killed:
            killed = True
            kill_one(seed)

    results = list(run(options, 2, report))
    assert killed and count == IMAGES
    assert sorted(result.images for result in results) == [0, 1, 2, 2, 2, 2]
    assert content_of(options.output) == content_of(tmp_path / "whole")
