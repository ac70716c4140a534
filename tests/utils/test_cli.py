"""However a tool fails, in whichever process: one line if a user can mend it."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.full_disk import largest_file
from helpers.tiny_run import exit_of
from torch.multiprocessing import ProcessRaisedException, start_processes
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from tagclip.errors import ConfigError, DatasetError, NonFiniteLossError, TagCLIPError
from tagclip.utils.cli import check_processes, forward_sigterm, hide_tracebacks, run_tool

MESSAGE = "/data/a.png: label 30 at (1,2), vocabulary toy has 0..4; mend it"


class Broken(Dataset):
    """Every sample is a bad one."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        try:
            return {}[index]
        except KeyError as error:
            raise DatasetError(MESSAGE) from error


def fail_here() -> None:
    raise DatasetError(MESSAGE)


def fail_in_a_loader(rank: int = 0) -> None:
    list(DataLoader(Broken(), num_workers=1))


def fail_in_a_process() -> None:
    start_processes(fail_in_a_loader, nprocs=1, start_method="fork")


@pytest.mark.parametrize("function", [fail_here, fail_in_a_loader, fail_in_a_process])
def test_one_line_from_every_process(
    function: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exit_of(run_tool, function) == f"DatasetError: {MESSAGE}"
    monkeypatch.setenv("TAGCLIP_DEBUG", "1")
    with pytest.raises((DatasetError, ProcessRaisedException)):
        run_tool(function)


def test_paths_on_the_command_line_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.delenv("NOTHING", raising=False)
    seen: list[Any] = []
    args = argparse.Namespace(
        output=Path("~/out"),
        input=["~/a", "$HOME/*.png", "b"],
        vocab="~cat, $5",
        number=3,
        none=None,
    )
    run_tool(lambda *found: seen.extend(found), args, Path("~/b"))
    assert vars(seen[0]) == {
        "output": Path("/home/x/out"),
        "input": ["/home/x/a", "/home/x/*.png", "b"],
        "vocab": "~cat, $5",
        "number": 3,
        "none": None,
    }
    assert seen[1] == Path("/home/x/b")
    assert "$NOTHING" in str(exit_of(run_tool, seen.append, Path("$NOTHING/a")))


def test_names_that_are_no_utf8_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As escapes, which a locale of UTF-8 does not do for stdout."""
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, "utf-8", "strict"))
    run_tool(print, os.fsdecode(b"caf\xe9"))
    sys.stdout.flush()
    assert content.getvalue() == b"caf\\udce9\n"


@pytest.mark.parametrize("kind", [ConfigError, NonFiniteLossError, TagCLIPError])
def test_a_message_of_several_lines_becomes_one(kind: type[TagCLIPError]) -> None:
    def fail() -> None:
        raise kind("SEED: found 1\nexpected 2")

    assert exit_of(run_tool, fail) == f"{kind.__name__}: SEED: found 1 expected 2"


def test_long_names_keep_their_beginning_and_their_end() -> None:
    """A path has no blanks, a class name may have many."""
    path, name = f"/data/{'x' * 4000}/a.png", " ".join(["very"] * 2000)

    def fail() -> None:
        raise DatasetError(f"{path}: found the class {name}; mend the file")

    line = exit_of(run_tool, fail)
    start, middle, end = f"DatasetError: /data/{'x' * 114}", "...", f"{'x' * 113}/a.png: found the"
    assert line.startswith(f"{start}{middle}{end} class very very")
    assert line.endswith("very; mend the file") and len(line) == 2000
    with pytest.raises(DatasetError) as caught:
        fail()
    assert path in caught.value.args[0]


def divide(rank: int = 0) -> None:
    list(map((1).__truediv__, [0]))


def raise_with_a_mendable_cause(rank: int = 0) -> None:
    try:
        fail_here()
    except DatasetError as error:
        raise RuntimeError("programming error") from error


@pytest.mark.parametrize("function", [divide, raise_with_a_mendable_cause])
def test_other_errors_keep_their_traceback(function: Callable[[], None]) -> None:
    with pytest.raises((ZeroDivisionError, RuntimeError)):
        run_tool(function)
    with pytest.raises(ProcessRaisedException, match="Traceback"):
        run_tool(lambda: start_processes(function, nprocs=1, start_method="fork"))


def ask_for_too_much(rank: int = 0) -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def ask_numpy_for_too_much(rank: int = 0) -> None:
    np.empty(1 << 60, np.uint8)


def run_out(rank: int = 0) -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("function", "kind", "what"),
    [
        (ask_for_too_much, "RuntimeError", f"you tried to allocate {1 << 60} bytes"),
        (ask_numpy_for_too_much, "MemoryError", "Unable to allocate 1.00 EiB"),
        (run_out, "MemoryError", "the system gave none"),
    ],
)
def test_a_lack_of_memory_is_one_line(
    function: Callable[[], None], kind: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = exit_of(run_tool, function)
    assert line.startswith(f"{kind}: found no memory left ({what}), expected room for what was as")
    assert "\n" not in line
    if function is not run_out:
        line = exit_of(run_tool, start_processes, function, (), 1, True, False, "fork")
        assert what in line and "\n" not in line
    monkeypatch.setenv("TAGCLIP_DEBUG", "1")
    with pytest.raises((MemoryError, RuntimeError)):
        run_tool(function)


def die(rank: int) -> None:
    os._exit(3)


def test_the_death_of_a_process_is_one_line() -> None:
    left = exit_of(run_tool, lambda: start_processes(die, nprocs=1, start_method="fork"))
    assert left.startswith("process 0 terminated with exit code 3; see ")
    assert "\n" not in left


def test_interruption(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def interrupt_with_advice() -> None:
        raise KeyboardInterrupt("call it again")

    # A shell starts background jobs with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert exit_of(run_tool, interrupt) == 130
        assert capsys.readouterr().err == "Interrupted\n"
        assert exit_of(run_tool, interrupt_with_advice) == 130
        assert capsys.readouterr().err == "Interrupted: call it again\n"
        monkeypatch.setenv("TAGCLIP_DEBUG", "1")
        with pytest.raises(KeyboardInterrupt):
            run_tool(interrupt)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("debug", ["", "1"])
def test_tracebacks_of_mendable_errors_go_to_the_file_only(
    debug: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAGCLIP_DEBUG", debug)
    logger = logging.getLogger("tagclip_test_cli")
    logger.propagate = False
    file = tmp_path / "log.txt"
    logger.handlers = [logging.StreamHandler(sys.stdout), logging.FileHandler(file)]
    hide_tracebacks(logger.name)
    for error in (DatasetError(MESSAGE), ValueError("a bug")):
        try:
            raise error
        except Exception:
            logger.exception("Exception during training:")
    logger.info("No error")
    logger.handlers[1].close()
    shown = capsys.readouterr().out
    assert "ValueError: a bug" in shown and "Traceback" in shown
    assert (MESSAGE in shown) == (debug == "1")
    assert MESSAGE in file.read_text()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("path", ["/data/a.txt", None])
def test_what_a_disk_says_is_one_line(
    number: int, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number), path)

    line = exit_of(run_tool, fail)
    named = path or "stdout, or a file that is open"
    assert f": {named}: cannot be read or written ({os.strerror(number)}); free space, or" in line
    assert len(line.splitlines()) == 1
    monkeypatch.setenv("TAGCLIP_DEBUG", "1")
    with pytest.raises(OSError):
        run_tool(fail)


def test_what_is_in_the_way_is_one_line(tmp_path: Path) -> None:
    (folder := tmp_path / "folder").mkdir()
    (file := tmp_path / "file").touch()
    (loop := tmp_path / "loop").symlink_to(loop)
    remedy = "move away what is there, or choose another place"
    for fail, named in (
        (lambda: folder.write_text(""), folder),
        (lambda: (file / "a").write_text(""), file / "a"),
        (lambda: file.mkdir(), file),
        (lambda: loop.read_text(), loop),
        (lambda: (tmp_path / ("a" * 300)).touch(), tmp_path / ("a" * 300)),
        (lambda: file.symlink_to(folder), file),
    ):
        line = exit_of(run_tool, fail)
        assert f": {named}: cannot be read or written (" in line and line.endswith(remedy)
        assert len(line.splitlines()) == 1


ENOENT = FileNotFoundError(errno.ENOENT, "No such file", "a")


@pytest.mark.parametrize("error", [ENOENT, OSError(), IsADirectoryError(errno.EISDIR, "Is a dir")])
def test_other_errors_of_the_system_may_be_ours(error: OSError) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(OSError):
        run_tool(fail)


def test_a_log_on_a_full_disk_costs_its_lines(capsys: pytest.CaptureFixture) -> None:
    """And nothing is said when Python closes it."""
    logger = logging.getLogger("tagclip_test_cli")
    logger.propagate = False
    with Path("/dev/full").open("a") as full:
        logger.handlers = [logging.StreamHandler(full)]

        def work() -> None:
            for number in range(3):
                logger.error("line %d", number)

        assert exit_of(run_tool, work) is None
    said = capsys.readouterr().err
    assert said == (
        "/dev/full: cannot be written (No space left on device); its lines are lost, the run goes "
        "on: free space\n"
    )


def test_a_log_that_nobody_reads_costs_its_lines(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has closed the pipe knows; nor is there anything to say it to where stderr fails, too."""
    logger = logging.getLogger("tagclip_test_cli")
    logger.propagate = False
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe, Path("/dev/full").open("w") as full:
        logger.handlers = [logging.StreamHandler(pipe)]
        assert exit_of(run_tool, lambda: [logger.error("line"), logger.error("line")]) is None
        logger.handlers = [logging.StreamHandler(full)]
        with monkeypatch.context() as patch, Path("/dev/full").open("w", 1) as other:
            patch.setattr(sys, "stderr", other)
            assert exit_of(run_tool, lambda: logger.error("line")) is None
            os.dup2(os.open(os.devnull, os.O_WRONLY), other.fileno())
    assert capsys.readouterr().err == ""


def test_tensorboard_on_a_full_disk_costs_its_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def work() -> None:
        writer = SummaryWriter(str(tmp_path))
        with largest_file(100), suppress(OSError):
            for step in range(100):
                writer.add_scalar("loss", 1.0, step)
            writer.flush()

    assert exit_of(run_tool, work) is None
    said = capsys.readouterr().err
    assert said.startswith("events.out.tfevents (TensorBoard): cannot be written (File too large)")
    assert len(said.splitlines()) == 1


def test_a_line_that_is_no_text_keeps_its_traceback(capsys: pytest.CaptureFixture) -> None:
    logger = logging.getLogger("tagclip_test_cli")
    logger.propagate, logger.handlers = False, [logging.StreamHandler(io.StringIO())]
    run_tool(lambda: logger.error("%d", "no number"))
    assert "TypeError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpus", "arguments", "expected"),
    [
        (0, (1,), None),
        (0, (0,), None),
        (2, (2,), None),
        (2, (2, 3, 2), None),
        (0, (2,), "--num-gpus: found 0 GPUs on this machine, expected 2; use --num-gpus 1"),
        (2, (8,), "--num-gpus: found 2 GPUs on this machine, expected 8; use --num-gpus 2"),
        (2, (-1,), "--num-gpus: found 2 GPUs on this machine, expected -1; use --num-gpus 2"),
        (0, (1, 2, 0), "--num-machines: found no GPU on this machine"),
        (1, (1, 2, 2), "--machine-rank: found 2 of --num-machines 2, expected 0 to"),
        (1, (1, 0, 0), "--machine-rank: found 0 of --num-machines 0, expected 0 to"),
    ],
)
def test_processes_are_checked_before_they_start(
    gpus: int, arguments: tuple[int, ...], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if expected is None:
        check_processes(*arguments)
        return
    with pytest.raises(ConfigError) as caught:
        check_processes(*arguments)
    assert str(caught.value).startswith(expected)


def test_sigterm_reaches_the_children() -> None:
    child = multiprocessing.get_context("fork").Process(target=signal.pause)
    child.start()
    before = signal.getsignal(signal.SIGTERM)
    try:
        forward_sigterm()
        os.kill(os.getpid(), signal.SIGTERM)
        child.join(60)
    finally:
        signal.signal(signal.SIGTERM, before)
        child.kill()
    assert child.exitcode == -signal.SIGTERM
