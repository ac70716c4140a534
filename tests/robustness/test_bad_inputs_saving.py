"""Checkpoints that are not finished, cannot be written or go on otherwise."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bench import Bench, files_below, refused
from helpers.full_disk import largest_file
from helpers.tiny_checkpoint import build, checkpointer, save_tiny

from tagclip.checkpoint import read_checkpoint
from tagclip.engine.data_stream import StreamLoader


def test_stopped_while_writing(bench: Bench) -> None:
    """Before the flush, before the rename, and between both files: what is named can be read."""
    save_tiny(bench.cfg, bench.output)
    cfg, model = build(bench.cfg, seed=2)
    folder = checkpointer(cfg, model, bench.output)
    for name, count in (("fsync", 1), ("replace", 1), ("replace", 2)):
        with bench.patch.context() as patch:
            stop_at(patch, name, count)
            with pytest.raises(KeyboardInterrupt):
                folder.save(f"model_{name}_{count}")
        last = Path(folder.get_checkpoint_file())
        assert last.name == "model_final.pth" and read_checkpoint(last)["model"]
        assert not list(bench.output.glob(".*")), "nothing half written stays"
    assert read_checkpoint(bench.output / "model_replace_2.pth")["model"], "complete"
    assert not (bench.output / "model_replace_1.pth").exists()


def stop_at(patch: pytest.MonkeyPatch, name: str, count: int) -> None:
    """Ctrl-C in the given call of a function of os."""
    function, calls = getattr(os, name), []

    def stop(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == count:
            raise KeyboardInterrupt
        return function(*args)

    patch.setattr(os, name, stop)


def test_disk_full_while_writing(bench: Bench) -> None:
    """The earlier one stays; after some room is made the same call succeeds."""
    before = bench.weights.read_bytes()
    cfg, model = build(bench.cfg, seed=2)
    folder = checkpointer(cfg, model, bench.output)
    with largest_file(len(before) // 2):
        refused(
            lambda: folder.save("model_later"),
            f"CheckpointError: {bench.output}/model_later.pth: cannot be written (File too large)",
            "earlier checkpoints are intact: free space or make the folder writable",
        )
    assert sorted(files_below(bench.output)) == ["last_checkpoint", "model_final.pth"]
    assert bench.weights.read_bytes() == before
    folder.save("model_later")
    assert Path(folder.get_checkpoint_file()).name == "model_later.pth"


def test_disk_full_before_the_first_is_written(bench: Bench) -> None:
    cfg, model = build(bench.cfg, seed=2)
    folder = checkpointer(cfg, model, bench.root / "new")
    with largest_file(1000):
        refused(
            lambda: folder.save("model_0000001"),
            "model_0000001.pth: cannot be written (File too large); there is no earlier "
            "checkpoint: free space or make the folder writable, then start again",
        )


def test_output_that_cannot_be_written(bench: Bench) -> None:
    """Found before the first step (a folder without rights would not stop root)."""
    (bench.root / "file").touch()
    call = bench.training("OUTPUT_DIR", bench.root / "file" / "run")
    refused(
        call, f"ConfigError: OUTPUT_DIR {bench.root}/file/run: found no folder to", "name another"
    )


def test_resumed_for_longer_with_another_batch(bench: Bench) -> None:
    """Resumed beyond the old end: the schedule follows the new length, another batch is said."""
    none = ("DATASETS.TEST", "()", "SOLVER.CHECKPOINT_PERIOD", 100)
    assert bench.train(*none) is None
    bench.said()
    more = ("SOLVER.MAX_ITER", 6, "SOLVER.IMS_PER_BATCH", 3)
    assert bench.train(*none, *more, resume=True) is None
    said = bench.said()
    assert "SOLVER.IMS_PER_BATCH 3 (was 2), SOLVER.MAX_ITER 6 (was 4)" in said
    assert "Nothing is left" not in said
    assert bench.train(*none, *more, resume=True) is None
    assert "Nothing is left to train: 6 iterations are done, SOLVER.MAX_ITER is 6" in bench.said()
    lines = (bench.output / "metrics.json").read_text().splitlines()
    rates = {line["iteration"]: line["lr"] for line in map(json.loads, lines) if "lr" in line}
    solver = bench.cfg.SOLVER
    decay = (1 - 5 / 6) ** solver.POLY_LR_POWER
    expected = (solver.BASE_LR - solver.MIN_LR) * decay + solver.MIN_LR
    assert max(rates) in (5, 6) and math.isclose(rates[max(rates)], expected, rel_tol=1e-6)
    assert torch.load(bench.output / "model_final.pth", weights_only=True)["iteration"] == 5


def test_resumed_with_another_number_of_processes(bench: Bench) -> None:
    """The batches are the same ones, shared among more."""
    samples = [{"number": number} for number in range(5)]

    def batches(rank: int, world_size: int) -> list[list[int]]:
        common = {"batch_size": 4, "max_iter": 3, "seed": 0}
        loader = StreamLoader(samples, dict, **common, rank=rank, world_size=world_size)
        return [[sample["number"] for sample in batch] for batch in loader]

    halves = zip(batches(0, 2), batches(1, 2), strict=True)
    assert [first + second for first, second in halves] == batches(0, 1)
