"""A training that is killed at any moment resumes as if it had not been."""

from __future__ import annotations

import multiprocessing
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from helpers.killable_run import (
    STEPS,
    VAL_IMAGES,
    Workshop,
    assert_same_end,
    check_folder,
    curve,
    starts,
)

from tagclip.engine.data_stream import leave_signals_to_main

SEED = 7
# Seconds after which a loader process that is still there counts as left behind.
PATIENCE = 60


@pytest.fixture(scope="module")
def workshop(
    tmp_path_factory: pytest.TempPathFactory, tiny_clip_json: str, tiny_vocabulary_json: str
) -> Iterator[Workshop]:
    """With one training that nothing has interrupted, in the folder ``straight``."""
    workshop = Workshop.open(tmp_path_factory.mktemp("run"), tiny_clip_json, tiny_vocabulary_json)
    try:
        assert workshop.train("straight") == 0
        assert [line["iteration"] for line in curve(workshop.root / "straight")] == [*range(9)]
        yield workshop
    finally:
        workshop.close()


def moments_of_training() -> Iterator[dict[str, Any]]:
    """Ten: in the forward pass, around the optimizer's step, in evaluations, before the curve."""
    draw = random.Random(SEED)
    for iteration in draw.sample(range(STEPS), 4):
        yield {"at": "forward", "count": iteration, "module": draw.randrange(60)}
    for at in ("backward", "backward", "step"):
        yield {"at": at, "count": draw.randrange(STEPS)}
    yield {"at": "log", "count": draw.randrange(STEPS)}
    # The evaluation in between, and the last one.
    yield {"at": "evaluation", "count": draw.randrange(VAL_IMAGES)}
    yield {"at": "evaluation", "count": VAL_IMAGES + draw.randrange(VAL_IMAGES)}


def moments_of_saving() -> Iterator[dict[str, Any]]:
    """Nine: after a share of the bytes, before the flush, before and after the renaming."""
    draw = random.Random(SEED)
    for name in ("model_0000001.pth", "model_0000003.pth", "model_0000005.pth", "model_final.pth"):
        yield {"at": "write", "file": name, "share": draw.random()}
    yield {"at": "fsync", "file": "model_0000005.pth"}
    yield {"at": "rename", "file": "model_0000007.pth"}
    # Between a checkpoint and last_checkpoint: the first one ever, and a later one.
    yield {"at": "renamed", "file": "model_0000001.pth"}
    yield {"at": "renamed", "file": "model_0000003.pth"}
    yield {"at": "write", "file": "last_checkpoint", "share": draw.random()}


TRAINING, SAVING = list(moments_of_training()), list(moments_of_saving())
QUICK = [TRAINING[0], SAVING[1], SAVING[6]]
SURVIVED: list[dict[str, Any]] = []


def survive(workshop: Workshop, moment: dict[str, Any]) -> None:
    """Kill a training, look at what it left, resume it, compare it with the uninterrupted one."""
    name = f"{len(os.listdir(workshop.root))}-{ids(moment)}"
    output = workshop.root / name
    assert workshop.train(name, **moment) == -signal.SIGKILL
    assert "file" in moment or not list(output.glob(".*.tmp"))
    is_unfinished = moment["at"] in ("write", "fsync", "rename")
    assert len(list(output.glob(".*.tmp"))) == is_unfinished
    iteration = check_folder(output) or 0
    assert workshop.train(name, "--resume") == 0, workshop.log(name)[-2000:]
    assert starts(workshop.log(name)) == [0, iteration]
    assert_same_end(output, workshop.root / "straight", iteration)
    SURVIVED.append(moment)


def ids(moment: dict[str, Any]) -> str:
    return "-".join(str(moment[key]) for key in ("at", "file", "count") if key in moment)


@pytest.mark.parametrize("moment", QUICK, ids=ids)
def test_resumes_bit_for_bit(workshop: Workshop, moment: dict[str, Any]) -> None:
    survive(workshop, moment)


@pytest.mark.slow
def test_survives_twenty_kills(workshop: Workshop, repository: Path) -> None:
    SURVIVED.clear()
    for moment in (*TRAINING, *SAVING):
        survive(workshop, moment)
    kill_from_outside(workshop, repository)
    assert len(SURVIVED) == 20
    assert sum("file" in moment for moment in SURVIVED) >= 6


def kill_from_outside(workshop: Workshop, repository: Path) -> None:
    """The plain tool in a process of its own, killed when it says that it saves."""
    output = workshop.root / "outside"
    command = [sys.executable, "tools/train_net.py", *workshop.arguments(output)]
    process = subprocess.Popen(
        command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process.stdout:
        assert any("Saving checkpoint to" in line and "0003.pth" in line for line in process.stdout)
        process.kill()
    assert process.wait() == -signal.SIGKILL
    iteration = check_folder(output)
    assert iteration >= 2
    assert workshop.train("outside", "--resume") == 0
    assert starts(workshop.log("outside")) == [iteration]
    assert_same_end(output, workshop.root / "straight", iteration)
    SURVIVED.append({"at": "outside"})


def test_loader_processes_end_with_the_main_one(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "workers.json"
    moment = {"at": "backward", "count": 1, "workers": str(file)}
    assert workshop.train("orphans", **moment) == -signal.SIGKILL
    pids = [int(pid) for pid in file.read_text().strip("[]").split(",")]
    assert len(pids) == 2
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with os.fdopen(handle) as process:
            assert select.select([process], [], [], PATIENCE)[0], f"process {pid} is still there"


def be_stuck(connection: Connection) -> None:
    """A loader process that answers once and never ends by itself."""
    leave_signals_to_main(0)
    connection.send("ready")
    connection.send(connection.recv())
    while True:
        signal.pause()


def test_a_stuck_loader_process_ends_when_the_main_one_says_so() -> None:
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=be_stuck, args=(theirs,))
    worker.start()
    assert ours.recv() == "ready"
    outsider = os.fork()
    if outsider == 0:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
        os._exit(0)
    os.waitpid(outsider, 0)
    ours.send("still there")
    assert ours.recv() == "still there"
    worker.terminate()
    worker.join(PATIENCE)
    assert worker.exitcode == 0


@pytest.mark.parametrize(
    ("number", "code", "at", "count", "iteration"),
    [
        (signal.SIGTERM, 0, "backward", 4, 4),
        # In the evaluation after step 3, which is finished first.
        pytest.param(signal.SIGTERM, 0, "evaluation", 1, 3, marks=pytest.mark.slow),
        (signal.SIGINT, 130, "backward", 2, 2),
        # The second one does not wait for the checkpoint.
        pytest.param(signal.SIGINT, 130, "evaluation", [0, 1], 3, marks=pytest.mark.slow),
    ],
)
def test_a_signal_for_the_whole_group_saves_and_ends(
    workshop: Workshop, number: int, code: int, at: str, count: Any, iteration: int
) -> None:
    """As clusters and terminals send it: the loader processes get it, too."""
    name = f"signal-{number}-{at}"
    output = workshop.root / name
    assert workshop.train(name, at=at, count=count, signal=number) == code, workshop.log(name)
    log = workshop.log(name)
    assert "Traceback" not in log and "DataLoader worker" not in log
    said = f"{signal.Signals(number).name}: saved iteration {iteration}; continue with --resume"
    assert (said in log) == (count != [0, 1])
    assert log.endswith("Interrupted\n") == (number == signal.SIGINT)
    assert check_folder(output) == iteration + 1
    assert workshop.train(name, "--resume") == 0
    assert_same_end(output, workshop.root / "straight", iteration + 1)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_in_the_last_evaluation_ends_at_once(
    workshop: Workshop, number: int, code: int
) -> None:
    name = f"last-{number}"
    output = workshop.root / name
    assert workshop.train(name, at="evaluation", count=VAL_IMAGES, signal=number) == code
    assert "the training is done and saved, its evaluation is not" in workshop.log(name)
    assert check_folder(output) == STEPS
    assert workshop.train(name, "--resume") == 0
    assert_same_end(output, workshop.root / "straight", STEPS)
