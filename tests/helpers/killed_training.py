"""Runs of tools/train_net.py that end themselves at a given moment, one forked process each.

The parent imports everything once and computes nothing: a process that has used autograd cannot
be forked. It reads requests from stdin, one json a line, and answers with the exit codes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from detectron2.engine import hooks
from helpers.paths import TOOLS
from helpers.tiny_run import load_tool
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils import tensorboard

from tagclip.engine import launch
from tagclip.engine.training_loop import TrainingLoop
from tagclip.evaluation import ZeroShotSemSegEvaluator
from tagclip.utils.cli import run_tool

# What a training imports late.
IMPORTED = (launch, open_clip, tensorboard)
TOOL = load_tool(TOOLS / "train_net.py")


class Countdown:
    """Act at the n-th call, counted from 0; a list of n acts at each."""

    def __init__(self, counts: int | list[int], act: Callable[[], None]) -> None:
        self._counts, self._act = [counts] if isinstance(counts, int) else counts, act
        self._calls = 0

    def __call__(self, *_: Any) -> None:
        if self._calls in self._counts:
            self._act()
        self._calls += 1


def kill(workers_file: str = "") -> None:
    """End this process as a power cut would; write down its loader processes before."""
    if workers_file:
        pids = [child.pid for child in multiprocessing.active_children()]
        Path(workers_file).write_text(json.dumps(pids))
    os.kill(os.getpid(), signal.SIGKILL)


def signal_group(number: int) -> None:
    """Let a process outside send a signal to this one and its loader processes, all at once."""
    group = os.getpgrp()
    sender = os.fork()
    if sender == 0:
        os.setsid()
        os.killpg(group, number)
        os._exit(0)
    os.waitpid(sender, 0)


def before_call(owner: type, name: str, countdown: Countdown) -> None:
    """Count the calls of a method."""
    original = getattr(owner, name)

    def counted(self: Any, *args: Any) -> Any:
        countdown()
        return original(self, *args)

    setattr(owner, name, counted)


def watch_training(at: str, countdown: Countdown) -> None:
    """Moments of a training that is not saving."""
    if at == "forward":
        before_call(TrainingLoop, "run_step", countdown)
    elif at == "backward":
        register_optimizer_step_pre_hook(countdown)
    elif at == "step":
        register_optimizer_step_post_hook(countdown)
    elif at == "evaluation":
        before_call(ZeroShotSemSegEvaluator, "process", countdown)
    elif at == "log":
        before_call(hooks.PeriodicWriter, "after_step", countdown)
    else:
        raise ValueError(at)


def in_forward(countdown: Countdown) -> None:
    """Count the calls of modules from now on."""

    def count(module: torch.nn.Module, inputs: Any) -> None:
        countdown()

    register_module_forward_pre_hook(count)


class DyingFile:
    """A file whose writer is killed after a share of the bytes."""

    def __init__(self, file: Any, share: float) -> None:
        self._file, self._share = file, share

    def __enter__(self) -> DyingFile:
        return self

    def __exit__(self, *_: Any) -> None:
        raise AssertionError("nothing was written")

    def write(self, content: bytes | memoryview) -> None:
        self._file.write(bytes(content)[: int(self._share * len(content))])
        self._file.flush()
        kill()


def watch_file(at: str, name: str, share: float) -> None:
    """Moments in the writing of one file."""
    path_open, fsync, replace = Path.open, os.fsync, os.replace

    def die_in_write(self: Path, *args: Any, **kwargs: Any) -> Any:
        file = path_open(self, *args, **kwargs)
        return DyingFile(file, share) if self.name.startswith(f".{name}.") else file

    def die_at_fsync(handle: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{handle}")).name.startswith(f".{name}."):
            kill()
        fsync(handle)

    def die_at_replace(source: Path, target: Path) -> None:
        if target.name != name:
            replace(source, target)
            return
        if at == "renamed":
            replace(source, target)
        kill()

    if at == "write":
        Path.open = die_in_write
    elif at == "fsync":
        os.fsync = die_at_fsync
    else:
        os.replace = die_at_replace


def write_every_step(writers: hooks.PeriodicWriter) -> None:
    """Instead of every twentieth: the curve tells all losses."""
    for writer in writers._writers:
        writer.write()


def arrange(request: dict[str, Any]) -> None:
    """Make this process end, or get a signal, at the requested moment."""
    hooks.PeriodicWriter.after_step = write_every_step
    at = request.get("at")
    if "file" in request:
        watch_file(at, request["file"], request.get("share", 0.0))
    elif at is not None:
        number = request.get("signal")
        act = (lambda: signal_group(number)) if number else lambda: kill(request.get("workers"))
        if at == "forward":
            act = partial(in_forward, Countdown(request["module"], act))
        watch_training(at, Countdown(request["count"], act))


def run(request: dict[str, Any]) -> None:
    """Be the tool: own process group, output into the log."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # A shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arrange(request)
    sys.argv[1:] = request["arguments"]
    run_tool(TOOL.start, TOOL.parse_args())
    # Taking the interpreter down costs as much as the training.
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    """Serve."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run(request)
            return
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, flush=True)


if __name__ == "__main__":
    main()
