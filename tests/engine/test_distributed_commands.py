"""Every documented way to start several processes gives what one process gives."""

from __future__ import annotations

import json
import socket
import subprocess
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.processes import (
    TORCHRUN,
    check_same_training,
    command,
    environment,
    joined,
    make_config,
    start,
    trained,
    untrained,
    write_config,
)
from helpers.tiny_run import changed, exit_of, run_arguments, write_tiny_dataset
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing import spawn

from tagclip.engine import launch as launch_module
from tagclip.engine.launch import launch
from tagclip.errors import ConfigError
from tagclip.evaluation.results import read_result_rows
from tagclip.utils.cli import run_tool

SETTINGS = ("inductive", "transductive", "supervised")
TRIO = 3


def never(args: Namespace) -> None:
    raise AssertionError("started")


@pytest.mark.parametrize(
    ("options", "device", "expected"),
    [
        ({"num_gpus": 2, "dist_url": "10.0.0.1:5"}, "cpu", "--dist-url: found '10.0.0.1:5', exp"),
        (
            {"num_gpus": 2, "dist_url": "tcp://a"},
            "cpu",
            "--dist-url: found 'tcp://a', expec",
        ),
        ({"num_gpus": 2, "dist_url": "tcp://a:x"}, "cpu", "--dist-url: found 'tcp://a:x', expecte"),
        ({"num_machines": 2}, "cpu", "--dist-url: found 'auto', expected tcp://ADDRESS:PORT of ma"),
        ({"num_machines": 2, "machine_rank": 2}, "cpu", "--machine-rank: found 2 of --num-machine"),
        ({"num_gpus": 2}, "cuda:1", "MODEL.DEVICE: found cuda:1, expected cuda with 2 processes"),
    ],
)
def test_mistakes_end_before_any_process_starts(
    options: dict[str, Any], device: str, expected: str
) -> None:
    line = exit_of(run_tool, launch, never, run_arguments(**options), device)
    assert line.startswith(f"ConfigError: {expected}")


def test_mistakes_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4, "GROUP_RANK": 0}
    for name, value in {"TORCHELASTIC_RUN_ID": "1", **found}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match="found --num-gpus 2 --num-machines 1 under torchrun"):
        launch(never, run_arguments(num_gpus=2), "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError) as caught:
        launch(never, run_arguments(), "cuda")
    assert str(caught.value) == (
        "--nproc-per-node: found 1 GPUs on this machine, expected 4; use --nproc-per-node 1, or "
        "MODEL.DEVICE cpu for 4 processes on CPUs"
    )


def test_a_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first process listens, and fails before it waits for others.
    def only_the_first(function: Callable[..., None], args: tuple, **_: Any) -> None:
        function(0, *args)

    monkeypatch.setattr(launch_module, "start_processes", only_the_first)
    monkeypatch.setattr(launch_module, "forward_sigterm", lambda: None)
    with socket.create_server(("", 0)) as other:
        url = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        options = run_arguments(num_gpus=2, dist_url=url)
        line = exit_of(run_tool, launch, never, options, "cpu")
    assert line.startswith(f"ConfigError: --dist-url: found the port of {url} in use")


def in_trio(rank: int, root: Path, clip: str, vocabulary: str) -> None:
    """Train in every setting; write what comes out."""
    with joined(root, rank, TRIO):
        cfg = changed(make_config(root, clip, vocabulary), "SOLVER.IMS_PER_BATCH", 2 * TRIO)
        found = {s: trained(changed(cfg, "DATASETS.ZERO_SHOT.SETTING", s), s) for s in SETTINGS}
        torch.save(found, root / f"found{rank}.pth")


@pytest.mark.slow
def test_three_processes_train_as_one(
    tmp_path: Path, tiny_clip_json: str, tiny_vocabulary_json: str
) -> None:
    # The third batch goes from one epoch into the next.
    write_tiny_dataset(tmp_path, train=7)
    cfg = make_config(tmp_path, tiny_clip_json, tiny_vocabulary_json)
    cfg = changed(cfg, "SOLVER.IMS_PER_BATCH", 2 * TRIO)
    spawn(in_trio, args=(tmp_path, tiny_clip_json, tiny_vocabulary_json), nprocs=TRIO)
    team = [torch.load(tmp_path / f"found{rank}.pth", weights_only=True) for rank in range(TRIO)]
    for setting in SETTINGS:
        own = changed(cfg, "DATASETS.ZERO_SHOT.SETTING", setting)
        before, alone = untrained(own, "unused"), trained(own, f"alone_{setting}")
        check_same_training(alone, [found[setting] for found in team], before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a tiny dataset on minibench's classes."""
    root = tmp_path_factory.mktemp("commands")
    write_tiny_dataset(root / "minibench")
    return root


@pytest.fixture(scope="module")
def config(root: Path, tiny_clip_json: str) -> Path:
    """Config file of a training of two steps."""
    return write_config(root, tiny_clip_json)


def run(lines: list[list[str]], root: Path) -> None:
    """Run commands at the same time."""
    processes = [start(line, root) for line in lines]
    for process in processes:
        text, _ = process.communicate(timeout=120)
        assert process.returncode == 0, text
        assert "Warning" not in text


@pytest.fixture(scope="module")
def alone(root: Path, config: Path) -> Path:
    """OUTPUT_DIR of one process that trained and evaluated."""
    line = command("--config-file", config, "OUTPUT_DIR", root / "alone")
    subprocess.run(line, env=environment(root), check=True, capture_output=True)
    return root / "alone"


def commands(how: str, *words: object) -> list[list[str]]:
    """Command lines of two processes, started at the same time."""
    words = (*words, "MODEL.DEVICE", "cpu")
    if how == "torchrun":
        return [command(*words, python=TORCHRUN)]
    if how == "num-gpus":
        return [command("--num-gpus", 2, "--dist-url", "auto", *words)]
    url = f"tcp://127.0.0.1:{get_free_port()}"
    node = ("--num-machines", 2, "--dist-url", url, "--machine-rank")
    return [command(*node, rank, *words) for rank in range(2)]


def result(output: Path) -> tuple[dict[str, str], list[list[int]]]:
    """The row of results.csv without its time; the confusion matrix."""
    ((row,), (metrics,)) = (
        read_result_rows(output / "results.csv")[1],
        output.glob("inf*/*/m*.json"),
    )
    del row["time"]
    return row, json.loads(metrics.read_text())["confusion"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["num-machines", "torchrun"])
def test_training(how: str, root: Path, config: Path, alone: Path) -> None:
    output = root / how
    run(commands(how, "--config-file", config, "OUTPUT_DIR", output), root)
    saved = [torch.load(p / "model_final.pth", weights_only=True)["model"] for p in (alone, output)]
    assert saved[0].keys() == saved[1].keys()
    for name, expected in saved[0].items():
        torch.testing.assert_close(saved[1][name], expected, rtol=1e-5, atol=1e-7)
    expected, row = result(alone)[0], result(output)[0]
    assert row.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith(("mIoU", "mACC", "pAcc", "hIoU", "trusty-")) and value:
            assert float(row[name]) == pytest.approx(float(value), abs=0.1)
        elif name == "trained_sha256":
            # Sums over processes differ in their last bits.
            assert len(row[name]) == 64
        else:
            assert row[name] == value, name


@pytest.mark.slow
@pytest.mark.parametrize("how", ["num-machines", "torchrun", "num-gpus"])
def test_evaluation(how: str, root: Path, config: Path, alone: Path) -> None:
    output, weights = root / f"{how}_evaluation", alone / "model_final.pth"
    words = ("--config-file", config, "--eval-only", "MODEL.WEIGHTS", weights)
    run(commands(how, *words, "OUTPUT_DIR", output), root)
    row, confusion = result(output)
    expected, expected_confusion = result(alone)
    assert confusion == expected_confusion
    # One evaluated what it had just trained, the other a file.
    assert row.pop("weights") == "model_final.pth" and len(row.pop("weights_sha256")) == 64
    assert row.pop("trained_iterations") == "2"
    assert {**row, "iterations": "2", "weights": "", "weights_sha256": ""} == expected
    # Not all pixels got the same class.
    assert np.array(confusion).any(axis=0).sum() > 1
    assert (output / "log.txt.rank1").exists()
