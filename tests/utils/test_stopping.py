"""Signals that end a command, in real processes: nothing half-written stays, one line tells."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

from tagclip.utils.stopping import Stopped, StopRequest, explained, stoppable

MAIN = """
import sys, threading
from pathlib import Path
from tagclip.utils.cli import run_tool
from tagclip.utils.files import folder_atomic, open_atomic
from tagclip.utils.stopping import StopRequest, explained

def write(folder):
    (folder / "finished").touch()
    with open_atomic(folder / "file") as file, folder_atomic(folder / "folder") as below:
        file.write(b"half")
        (below / "x").touch()
        Path(folder, "begun").touch()
        threading.Event().wait()

def explain(folder):
    with explained("1 of 2 files is there"):
        write(folder)

def loop(folder):
    with StopRequest("this one") as stop:
        (folder / "begun").touch()
        while not stop.number:
            pass
    print("whole", flush=True)
    (folder / "finished").touch()

run_tool({"write": write, "explain": explain, "loop": loop}[sys.argv[1]], Path(sys.argv[2]))
"""
GENERIC = "finished files stay, the one at work is removed"


def started(folder: Path, what: str, **options: object) -> subprocess.Popen[str]:
    """A process that is at work."""
    folder.mkdir()
    process = subprocess.Popen(
        # A shell's background jobs ignore Ctrl-C, those of nohup SIGHUP: python would not listen.
        [sys.executable, "-c", f"import signal; signal.signal(2, signal.default_int_handler);"
         "signal.signal(1, signal.SIG_DFL);"
         f"import sys; sys.argv[1:] = {[what, str(folder)]}; exec({MAIN!r})"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )  # fmt: skip
    while not (folder / "begun").exists():
        assert process.poll() is None, process.communicate()
    return process


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"begun"}


@pytest.mark.parametrize(
    ("number", "what", "code", "line"),
    [
        (signal.SIGTERM, "write", 143, f"Stopped by SIGTERM: {GENERIC}"),
        (signal.SIGTERM, "explain", 143, "Stopped by SIGTERM: 1 of 2 files is there"),
        (signal.SIGHUP, "write", 129, f"Stopped by SIGHUP: {GENERIC}"),
        (signal.SIGINT, "explain", 130, "Interrupted: 1 of 2 files is there"),
    ],
)
def test_a_command_is_unwound(tmp_path: Path, number: int, what: str, code: int, line: str) -> None:
    process = started(tmp_path / "out", what)
    process.send_signal(number)
    said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, ("", f"{line}\n"))
    assert names(tmp_path / "out") == {"finished"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_loop_finishes_what_it_is_at(tmp_path: Path, number: int) -> None:
    process = started(tmp_path / "out", "loop")
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "whole\n")
    assert ("finishing this one; once more stops at once" in errors) == (number == signal.SIGINT)


@pytest.mark.parametrize(("what", "code"), [("write", 129), ("loop", 0)])
def test_a_closed_terminal(tmp_path: Path, what: str, code: int) -> None:
    ours, theirs = pty.openpty()
    process = started(
        tmp_path / "out", what, stdin=theirs, stdout=theirs, stderr=theirs, process_group=0
    )
    os.close(theirs)
    os.close(ours)
    # The kernel sends it to what the terminal controls, which a test's process is not.
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == code
    assert names(tmp_path / "out") == {"finished"}


def test_what_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable(), StopRequest("it") as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.number == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_those_of_before() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    with pytest.raises(Stopped) as caught, stoppable(), explained(lambda: "3 of 5"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert (caught.value.number, caught.value.args) == (signal.SIGTERM, ("3 of 5",))
    with stoppable(), StopRequest("it"):
        pass
    after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    assert before == after


def test_another_thread_changes_nothing() -> None:
    found = []

    def look() -> None:
        with stoppable(), StopRequest("it"):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def test_a_second_ctrl_c_does_not_wait() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), StopRequest("it"):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError
    finally:
        signal.signal(signal.SIGINT, before)
