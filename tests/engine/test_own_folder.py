"""Two runs in one OUTPUT_DIR: the second one is refused before it writes anything."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from helpers.bench import Bench, files_below, refused
from helpers.locks import at_work
from helpers.processes import (
    TORCHRUN,
    children,
    command,
    environment,
    start,
    wait_for,
    write_config,
)
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import Call, short_run, train, write_tiny_dataset

from tagclip import ZeroShotTrainer
from tagclip.engine.own_folder import own_folder
from tagclip.errors import ConfigError
from tagclip.utils.run_lock import RunLock

# Seconds after which a process that is still there counts as left behind.
SOON = 300
TEAM = ("--num-gpus", 2, "--dist-url", "auto", "MODEL.DEVICE", "cpu")


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Bench:
    """The tools on a tiny dataset."""
    return Bench.of(request)


@pytest.mark.parametrize(
    "options", [{}, {"resume": True}, {"overwrite": True}, {"eval_only": True}], ids=str
)
def test_a_folder_with_a_run_at_work_is_left_alone(bench: Bench, options: dict[str, Any]) -> None:
    weights = save_tiny(bench.cfg, bench.root / "start")
    bench.output.mkdir()
    (bench.output / "config.yaml").write_text("of the other")
    (bench.output / "log.txt").write_text("of the other")
    with at_work(bench.output) as process:
        before = files_below(bench.output)
        keys = ("MODEL.WEIGHTS", weights, "SEED", 1) if "eval_only" in options else ()
        line = refused(bench.training(*keys, **options), f"process {process.pid} on ")
        assert line.startswith(f"ConfigError: OUTPUT_DIR {bench.output}: process ")
        assert files_below(bench.output) == before


def test_a_finished_run_leaves_no_lock(bench: Bench) -> None:
    assert bench.train() is None
    assert not (bench.output / ".lock").exists()


def test_a_trainer_of_ones_own_is_refused_as_well(tiny_cfg: CfgNode, bench: Bench) -> None:
    assert bench.config
    trainer = ZeroShotTrainer(tiny_cfg)
    with at_work(bench.output) as process:
        with pytest.raises(ConfigError, match=f"process {process.pid} on "):
            trainer.train()
        # detectron2's writers open their files when they are made.
        curve = "events.out.tfevents.*", "metrics.json"
        left = {path for path in bench.output.iterdir() if not any(map(path.match, curve))}
        assert left == {bench.output / ".lock"} and not (bench.output / "metrics.json").read_text()


@pytest.mark.parametrize("gone", [Path.rename, lambda path, _: shutil.rmtree(path)])
def test_a_folder_that_goes_during_a_training_is_not_written_anew(
    tiny_cfg: CfgNode, tmp_path: Path, gone: Callable[[Path, Path], None]
) -> None:
    """Its checkpoints would take the places of those of the run that has the folder by then."""
    cfg = short_run(tiny_cfg, tmp_path, "SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2)
    output, moved = Path(cfg.OUTPUT_DIR), tmp_path / "moved"

    def take_over(trainer: Any) -> None:
        gone(output, moved)
        output.mkdir()
        (output / "model_final.pth").write_text("of the other")

    with pytest.raises(ConfigError, match="found it moved or removed"):
        train(cfg, hook=Call(2, take_over))
    left = {name: content for name, content in files_below(output).items() if "events" not in name}
    assert left == {"model_final.pth": b"of the other"}
    if moved.exists():
        assert train(cfg, "OUTPUT_DIR", str(moved), resume=True).iter == 6


def test_one_process_may_nest(tmp_path: Path) -> None:
    with own_folder(tmp_path):
        with own_folder(tmp_path / "." / ""):
            assert RunLock.is_held(tmp_path)
        assert RunLock.is_held(tmp_path)
    with own_folder(""):
        assert not RunLock.is_held(Path())
    assert not list(tmp_path.iterdir())


@pytest.fixture
def config(tmp_path: Path, tiny_clip_json: str) -> Path:
    """Config file of a run on minibench's classes, with a tiny dataset beside it."""
    write_tiny_dataset(tmp_path / "minibench")
    return write_config(tmp_path, tiny_clip_json, OUTPUT_DIR=str(tmp_path / "output"))


@pytest.mark.slow
def test_all_processes_of_a_run_are_refused_with_one_line(config: Path, tmp_path: Path) -> None:
    with at_work(tmp_path / "output") as other:
        process = start(command("--config-file", config, *TEAM), tmp_path)
        text, _ = process.communicate(timeout=SOON)
        assert process.returncode == 1, text
        assert f"OUTPUT_DIR {tmp_path}/output: process {other.pid} on " in text.splitlines()[-1]
        assert "Traceback" not in text
        assert [path.name for path in (tmp_path / "output").iterdir()] == [".lock"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["num-gpus", "torchrun"])
def test_processes_of_a_killed_command_end(how: str, config: Path, tmp_path: Path) -> None:
    """In the background of a script, where Ctrl-C, which torch sends orphans, is ignored."""
    words = ("SOLVER.MAX_ITER", 10**6, "SOLVER.BASE_LR", 1e-4)
    if how == "torchrun":
        words = ("--config-file", config, "MODEL.DEVICE", "cpu", *words)
        words = command(*words, python=TORCHRUN)
    else:
        words = command("--config-file", config, *TEAM, *words)
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *words],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(process, "iter: 19 ")
    ranks = children(process.pid)
    assert len(ranks) == 2
    with pytest.raises(ConfigError, match=f"process {ranks[0]} on "), RunLock(tmp_path / "output"):
        raise AssertionError
    os.kill(process.pid, signal.SIGKILL)
    # The pipe ends with the last process that has inherited it.
    process.communicate(timeout=SOON)
    with RunLock(tmp_path / "output"):
        pass
