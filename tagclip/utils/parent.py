"""Processes that end with the one that started them, even if that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection, parent_process
from typing import IO

from tagclip.utils.stopping import STOPPING

__all__ = [
    "end_with_parent",
    "ending_children",
    "leave_signals_to_parent",
    "run_child",
    "unsignalled",
]

# Names the pipe whose other end only the parent of `run_child` holds.
_PIPE = "TAGCLIP_PARENT"
_children: set[subprocess.Popen] = set()
_are_ending = threading.Event()
_lock = threading.Lock()


def end_with_parent(*, of_torchrun: bool = False) -> None:
    """Call it in a process of multiprocessing or of `run_child`: it would go on for ever without.

    In a process that was started in another way it does nothing.

    Args:
        of_torchrun: end with whatever started this process, which is torchrun, where the system
            tells of its end (Linux).
    """
    parent, pipe = parent_process(), os.environ.pop(_PIPE, "")
    if parent is not None or pipe:
        sentinel = int(pipe) if parent is None else parent.sentinel
    elif of_torchrun and hasattr(os, "pidfd_open"):
        sentinel = os.pidfd_open(os.getppid())
    else:
        return
    threading.Thread(target=_end, args=(sentinel,), daemon=True).start()


def _end(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def run_child(command: Sequence[str], output: IO[str], environment: Mapping[str, str]) -> int:
    """Run a command that calls `end_with_parent`; return its exit code.

    Args:
        command: of a process.
        output: file that gets what it prints.
        environment: more variables.
    """
    read, write = os.pipe()
    try:
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, _PIPE: str(read)},
            pass_fds=[read],
        )
    except BaseException:
        os.close(write)
        raise
    finally:
        os.close(read)
    with _lock:
        _children.add(child)
        if _are_ending.is_set():
            child.terminate()
    try:
        return child.wait()
    finally:
        with _lock:
            _children.discard(child)
        os.close(write)


@contextmanager
def ending_children() -> Iterator[None]:
    """Let the processes of `run_child`, also those that start within, save and end: SIGTERM."""
    with _lock:
        _are_ending.set()
        for child in _children:
            child.terminate()
    try:
        yield
    finally:
        _are_ending.clear()


@contextmanager
def unsignalled() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP are the business of the main process alone, from the first moment
    of those that are started within.

    They inherit what is blocked here, and keep it; they call `leave_signals_to_parent`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *STOPPING})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent() -> None:
    """Let this process outlive the signals that its whole group gets.

    A terminal or a cluster sends them to every process; the main one saves or cleans up, and ends
    the others itself: a SIGTERM of the parent is obeyed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for each in STOPPING:
        if each != signal.SIGTERM:
            signal.signal(each, signal.SIG_IGN)
    # Elsewhere than on Linux nothing tells who sent a signal.
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_says, daemon=True).start()
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _end_when_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
