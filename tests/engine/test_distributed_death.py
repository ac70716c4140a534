"""A process that dies takes the whole command with it, soon and with one line.

Each test would end with `subprocess.TimeoutExpired` if the others went on waiting.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from detectron2.utils import comm
from helpers.processes import children, command, start, wait_for, write_config
from helpers.tiny_run import exit_of, run_arguments, write_tiny_dataset
from torch import distributed
from torch.distributed.elastic.utils.distributed import get_free_port

from tagclip.engine.launch import launch
from tagclip.errors import DatasetError
from tagclip.utils.cli import run_tool

# Seconds from the death to the end.
SOON = 60
FOREVER = ("SOLVER.MAX_ITER", 10**6, "SOLVER.BASE_LR", 1e-4)
TEAM = ("--num-gpus", 2, "--dist-url", "auto", "MODEL.DEVICE", "cpu")


@pytest.fixture
def config(tmp_path: Path, tiny_clip_json: str) -> Path:
    """Config file of a run on minibench's classes, with a tiny dataset beside it."""
    write_tiny_dataset(tmp_path / "minibench")
    output = str(tmp_path / "output")
    return write_config(tmp_path, tiny_clip_json, OUTPUT_DIR=output)


def end_of(process: subprocess.Popen) -> list[str]:
    """Last lines of a command that must fail soon; nothing of it is a traceback."""
    text, _ = process.communicate(timeout=SOON)
    assert process.returncode == 1, text
    assert "Traceback" not in text, text
    return text.splitlines()


@pytest.mark.slow
def test_killed_in_training(config: Path, tmp_path: Path) -> None:
    process = start(command("--config-file", config, *TEAM, *FOREVER), tmp_path)
    wait_for(process, "iter: 19 ")
    os.kill(children(process.pid)[1], signal.SIGKILL)
    assert end_of(process)[-1] == (
        "process 1 terminated with signal SIGKILL (memory may have run out); see above or "
        "log.txt in OUTPUT_DIR for the reason"
    )


@pytest.mark.slow
def test_killed_in_evaluation(config: Path, tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        folder = tmp_path / "minibench" / kind / "val"
        for index in range(1000):
            os.link(folder / "0.png", folder / f"copy{index}.png")
    process = start(command("--config-file", config, *TEAM), tmp_path)
    wait_for(process, "Start inference on ")
    # The first process is where all others meet.
    os.kill(children(process.pid)[0], signal.SIGKILL)
    assert end_of(process)[-1].startswith("process 0 terminated with signal SIGKILL")
    assert not (tmp_path / "output" / "results.csv").exists()


@pytest.mark.slow
def test_a_damaged_label_of_the_second_process(config: Path, tmp_path: Path) -> None:
    # Of the test images 0 and 1 are the first process's.
    label = tmp_path / "minibench" / "labels" / "val" / "2.png"
    label.write_bytes(b"damaged")
    process = start(command("--config-file", config, *TEAM), tmp_path)
    wait_for(process, "Start inference on ")
    line = end_of(process)[-1]
    assert line.startswith(f"DatasetError: {label}: cannot decode this label file (7 bytes")


def break_in_the_second(args: argparse.Namespace) -> None:
    """The second process closes its connection long before it ends, as one with a GPU may."""
    if comm.get_rank() == 1:
        distributed.destroy_process_group()
        time.sleep(3)
        raise DatasetError("a.png: the cause")
    comm.synchronize()


@pytest.mark.slow
def test_the_cause_is_reported_not_who_ends_first() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        line = exit_of(run_tool, launch, break_in_the_second, run_arguments(num_gpus=2), "cpu")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert line == "DatasetError: a.png: the cause"


@pytest.mark.slow
def test_killed_on_another_machine(config: Path, tmp_path: Path) -> None:
    url = f"tcp://127.0.0.1:{get_free_port()}"
    words = ("--num-machines", 2, "--dist-url", url, "MODEL.DEVICE", "cpu", *FOREVER)
    nodes = [
        start(command("--config-file", config, "--machine-rank", rank, *words), tmp_path)
        for rank in range(2)
    ]
    wait_for(nodes[0], "iter: 19 ")
    (second,) = children(nodes[1].pid)
    os.kill(second, signal.SIGKILL)
    assert end_of(nodes[1])[-1].startswith("process 0 terminated with signal SIGKILL")
    line = end_of(nodes[0])[-1]
    assert line.startswith("ProcessError: process 0 of 2: found the connection to another one bro")
    assert line.endswith("then continue with --resume")
