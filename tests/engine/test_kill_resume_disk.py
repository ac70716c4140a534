"""A folder that cannot be written is found before a training; a disk that fills is survived."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from helpers.full_disk import largest_file, read_only
from helpers.tiny_checkpoint import build, checkpointer
from helpers.tiny_run import (
    changed,
    equal,
    exit_of,
    own_loggers,
    run_arguments,
    short_run,
    train,
    weights,
    write_run_config,
)

from tagclip import load_config
from tagclip.checkpoint import read_checkpoint
from tagclip.errors import CheckpointError
from tagclip.utils.cli import run_tool
from tagclip.utils.files import probe_folder, remove_leftovers, write_atomic

# Less than a checkpoint of the tiny model, more than its logs.
FULL = 100_000


@pytest.fixture
def cfg(tiny_cfg: CfgNode, tmp_path: Path) -> CfgNode:
    """Six steps, a checkpoint every second."""
    return short_run(tiny_cfg, tmp_path, "SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2)


class FullDisk(HookBase):
    """From the beginning of one step to that of another no large file can be written."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def before_step(self) -> None:
        if self.trainer.iter == self.start:
            resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, self.before[1]))
        if self.trainer.iter == self.stop:
            self.after_train()

    def after_train(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def saved(cfg: CfgNode) -> dict[str, int]:
    """Name -> iteration of every checkpoint; all are complete."""
    files = Path(cfg.OUTPUT_DIR).glob("*.pth")
    return {path.name: read_checkpoint(path)["iteration"] for path in files}


def test_a_disk_that_is_full_for_a_while_costs_one_checkpoint(
    cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight = train(changed(cfg, "OUTPUT_DIR", str(tmp_path / "straight")))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    trainer = train(cfg, hook=FullDisk(2, 4))
    assert saved(cfg) == {"model_0000001.pth": 1, "model_0000005.pth": 5, "model_final.pth": 5}
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage() == (
        f"OUTPUT_DIR {cfg.OUTPUT_DIR}: the checkpoint of iteration 3 cannot be written (File too "
        "large); the last one stays, training goes on and tries again after iteration 5: free space"
    )
    assert equal(weights(trainer.model), weights(straight.model))


def test_a_disk_that_stays_full_ends_with_the_last_good_checkpoint(
    cfg: CfgNode, tmp_path: Path
) -> None:
    with pytest.raises(
        CheckpointError, match=r"model_0000005\.pth: cannot be written \(File too l"
    ):
        train(cfg, hook=FullDisk(2, 99))
    assert saved(cfg) == {"model_0000001.pth": 1}
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_0000001.pth"
    resumed = train(cfg, resume=True)
    straight = train(changed(cfg, "OUTPUT_DIR", str(tmp_path / "straight")))
    assert equal(weights(resumed.model), weights(straight.model))


def test_a_curve_and_a_result_that_cannot_be_written_do_not_end_a_training(
    tiny_cfg: CfgNode, cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    """Writes to /dev/full fail as those to a full disk."""
    cfg = changed(cfg, "DATASETS.TEST", tiny_cfg.DATASETS.TEST, "TEST.EVAL_PERIOD", 3)
    output = Path(cfg.OUTPUT_DIR)
    output.mkdir()
    (output / "metrics.json").symlink_to("/dev/full")
    # A folder in the place of the file: the first evaluation fails to write, the last one, too.
    result = output / "inference" / cfg.DATASETS.TEST[0] / "metrics.json"
    (result / "in the way").mkdir(parents=True)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    message = exit_of(run_tool, train, cfg)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert message.startswith(f"ConfigError: {result}: cannot be written (")
    assert saved(cfg)["model_final.pth"] == 5
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert any(e.startswith(f"{result}: cannot be written (") for e in errors)
    assert [e for e in errors if "training curve" in e] == [
        "JSONWriter cannot write the training curve (No space left on device); training goes on: "
        "free space"
    ]
    assert all(e.endswith(("; training goes on", ": free space")) for e in errors[:2])


def start(train_net: ModuleType, config: Path, *opts: Any) -> Any:
    """How the tool ends."""
    with own_loggers():
        return exit_of(run_tool, train_net.start, run_arguments(config, *opts))


def test_no_room_is_found_before_the_first_step(
    tiny_cfg: CfgNode, tmp_path: Path, train_net: ModuleType
) -> None:
    config = write_run_config(tiny_cfg, tmp_path)
    with largest_file(FULL):
        line = start(train_net, config)
    output = tmp_path / "output"
    assert line.startswith(f"CheckpointError: OUTPUT_DIR {output}: found no room for a checkpoint ")
    assert "(File too large), expected a writable folder with " in line and "\n" not in line
    assert line.endswith(" MB free; free space or name another folder")
    assert "total_loss" not in (output / "log.txt").read_text()
    assert not (output / "metrics.json").read_text() and not list(output.glob(".*.tmp"))


@pytest.mark.parametrize("exists", [False, True])
def test_a_read_only_folder_is_one_line(
    exists: bool, tiny_cfg: CfgNode, tmp_path: Path, train_net: ModuleType
) -> None:
    config, output = write_run_config(tiny_cfg, tmp_path), tmp_path / "output"
    if exists:
        output.mkdir()
    with read_only(tmp_path):
        assert start(train_net, config) == (
            f"ConfigError: OUTPUT_DIR {output}: found no folder to write to (Permission denied), "
            "expected one; name another"
        )
    assert not output.exists() or not list(output.iterdir())


def test_a_disk_without_room_for_the_config_keeps_the_earlier_one(
    tiny_cfg: CfgNode, tmp_path: Path, train_net: ModuleType
) -> None:
    """detectron2 empties the file before it writes."""
    config, output = write_run_config(tiny_cfg, tmp_path), tmp_path / "output"
    earlier = load_config(config, ["SEED", "5"]).dump()
    write_atomic(output / "config.yaml", earlier)
    with largest_file(1000):
        assert start(train_net, config).startswith(f"ConfigError: OUTPUT_DIR {output}: found no ")
    assert (output / "config.yaml").read_text() == earlier


def test_the_probe_leaves_nothing_and_asks_for_what_a_checkpoint_takes(
    cfg: CfgNode, tmp_path: Path
) -> None:
    train(cfg)
    size = (Path(cfg.OUTPUT_DIR) / "model_final.pth").stat().st_size
    probe_folder(tmp_path / "probe", size)
    assert not os.listdir(tmp_path / "probe")
    with largest_file(size - 1), pytest.raises(OSError, match="File too large"):
        probe_folder(tmp_path / "probe", size)
    assert not os.listdir(tmp_path / "probe")
    writer = checkpointer(*build(cfg), tmp_path / "other")
    with largest_file(int(0.8 * size)), pytest.raises(CheckpointError, match="no room"):
        writer.probe()
    with largest_file(size):
        writer.probe()


def test_leftovers_of_a_kill_go_with_the_next_checkpoint(cfg: CfgNode, tmp_path: Path) -> None:
    ours = [".model_0000001.pth.0123abcd.tmp", ".last_checkpoint.ffffffff.tmp"]
    others = [".model_0000001.pth.tmp", "model.tmp", ".notes.0123abcd.tmp", ".x.pth.0123ABCD.tmp"]
    for name in (*ours, *others):
        (tmp_path / name).touch()
    checkpointer(*build(cfg), tmp_path).save("x")
    left = {path.name for path in tmp_path.iterdir()}
    assert left >= {*others, "x.pth", "last_checkpoint"} and not left & {*ours}


def test_only_temporary_files_are_leftovers(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.pth", b"1")
    remove_leftovers(tmp_path, "*")
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_folder_with_one_complete_checkpoint_and_no_name_of_it_is_resumed(
    cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    """What a kill right after the first checkpoint leaves."""
    train(changed(cfg, "SOLVER.MAX_ITER", 2))
    output = Path(cfg.OUTPUT_DIR)
    (output / "last_checkpoint").unlink()
    # Weights alone are no training.
    (output / "model_final.pth").unlink()
    checkpointer(*build(cfg), output).save("weights")
    (output / "last_checkpoint").unlink()
    resumed = train(cfg, resume=True)
    assert resumed.start_iter == 2
    assert "last_checkpoint: no such file: continuing from the latest iteration" in caplog.text
    curve = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert curve[-1]["iteration"] == 5
