"""How command-line tools end: one line for what a user can mend, exit code 1."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tagclip.errors import ConfigError, TagCLIPError
from tagclip.utils.files import expand_path, probe_path, temporary_place
from tagclip.utils.installed import check_installed
from tagclip.utils.lost_logs import lost_logs
from tagclip.utils.quiet import quiet_imports
from tagclip.utils.sockets import is_lost_socket
from tagclip.utils.stopping import STOPPING, Stopped, leave_terminal, stoppable
from tagclip.utils.text import one_line, shortened

__all__ = [
    "check_output",
    "check_processes",
    "error_line",
    "expand_arguments",
    "forward_sigterm",
    "hide_tracebacks",
    "is_lost_connection",
    "run_tool",
    "writing",
]

_LONGEST = 2000
# What a disk, its rights and its quota answer; a file that is not there may be our mistake.
_OF_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM,
}  # fmt: skip
# What stands where another kind of thing is needed, or cannot stand there.
_IN_THE_WAY = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG}
# A text that is a path which the shell has not expanded, as in --output=~/pictures.
_UNEXPANDED = re.compile(r"(~\w*|\$\w+|\$\{\w+\})/")
# What torch, on CPU and GPU, and numpy say where memory runs out.
_NO_MEMORY = re.compile(
    r"you tried to allocate \d+ bytes|CUDA out of memory\. Tried to allocate [\d.]+ \w+"
    r"|Unable to allocate [\d.]+ \w+"
)
# Last line of the traceback that a loader or training process hands on as text.
_LAST_LINE = re.compile(r"^tagclip\.errors\.(\w+): (.+)\s*\Z", re.MULTILINE)


def run_tool(main: Callable[..., Any], *args: Any) -> None:
    """Call ``main``; a `TagCLIPError`, in whichever process, becomes one line on stderr.

    So does what a disk, its rights or its quota answer to a write or read that nobody names in a
    better way. Heavy packages should be imported inside ``main``: `quiet_imports` comes before it.
    ``TAGCLIP_DEBUG=1`` shows the traceback instead.

    Args:
        main: the tool.
        args: its arguments. Paths in them are expanded (`expand_path`), also those in a Namespace.

    Raises:
        SystemExit: with 1 after a `TagCLIPError` or the death of a process, 130 after Ctrl-C, 143
            after SIGTERM, 129 after SIGHUP (the terminal is closed).
    """
    quiet_imports()
    # As stderr by itself: no report ends at a name that is no UTF-8.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        check_installed()
        with stoppable(), lost_logs():
            main(*map(expand_arguments, args))
    except TagCLIPError as error:
        if _is_debugging():
            raise
        sys.exit(error_line(error))
    except KeyboardInterrupt as error:
        if _is_debugging():
            raise
        print(_stop_line(error), file=sys.stderr)
        sys.exit(128 + (error.number if isinstance(error, Stopped) else signal.SIGINT))
    except Exception as error:
        lines = (_disk_line, _process_line, _memory_line, _socket_line)
        line = next(filter(None, (line(error) for line in lines)), None)
        if line is None:
            raise
        sys.exit(line)


def expand_arguments(value: Any) -> Any:
    """Arguments of a tool with the paths in them expanded (`expand_path`).

    Raises:
        ConfigError: one is none, see there.
    """
    if isinstance(value, argparse.Namespace):
        return argparse.Namespace(**{k: expand_arguments(each) for k, each in vars(value).items()})
    if isinstance(value, list):
        return list(map(expand_arguments, value))
    if isinstance(value, Path):
        return Path(expand_path(value))
    is_path = isinstance(value, str) and _UNEXPANDED.match(value)
    return expand_path(value) if is_path else value


def _stop_line(error: KeyboardInterrupt) -> str:
    """How an interruption is told: one of a tool says what is there and how to go on."""
    if not isinstance(error, Stopped):
        return ": ".join(["Interrupted", *map(str, error.args)])
    text = error.args[0] if error.args else "finished files stay, the one at work is removed"
    return f"Stopped by {signal.Signals(error.number).name}: {text}"


def _disk_line(error: Exception) -> str | None:
    """What the disk says, in one line; None for another error."""
    if not isinstance(error, OSError) or _is_debugging():
        return None
    if error.errno in _OF_DISK:
        remedy = "free space, or mend its rights"
    elif error.errno in _IN_THE_WAY and error.filename is not None:
        remedy = "move away what is there, or choose another place"
    else:
        return None
    # The system names no file that is open, and of a link first where it leads to.
    named = error.filename2 or error.filename or "stdout, or a file that is open"
    return (
        f"{type(error).__name__}: {named}: cannot be read or written ({error.strerror}); {remedy}"
    )


def _memory_line(error: Exception) -> str | None:
    """That memory ran out, in one line; None for another error."""
    return None if _is_debugging() or _lack_of_memory(error) is None else error_line(error)


def _socket_line(error: Exception) -> str | None:
    """That sockets of processes have gone, in one line; None for another error."""
    if _is_debugging() or not is_lost_socket(error):
        return None
    return (
        f"{type(error).__name__}: TMPDIR: found the sockets gone by which processes hand things on "
        f"({temporary_place()}/pymp-*), expected them to stay; keep what cleans temporary files "
        "from them, or set TMPDIR to a folder that nothing cleans, and start again, a training "
        "with --resume"
    )


def _process_line(error: Exception) -> str | None:
    """Why a process of `launch` ended, in one line; None for another error."""
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    if isinstance(error, ProcessExitedException):
        memory = " (memory may have run out)" if error.signal_name == "SIGKILL" else ""
        return f"{error}{memory}; see above or log.txt in OUTPUT_DIR for the reason"
    if isinstance(error, ProcessRaisedException) and not _is_debugging():
        return error_line(error)
    return None


def error_line(error: BaseException) -> str | None:
    """Kind and message of a `TagCLIPError` in one line of a sane length, as of a lack of memory.

    Args:
        error: may come from a loader process (torch keeps its type and puts the traceback into
            the message) or from a process of `launch` (torch keeps only the traceback).

    Returns:
        None for another error.
    """
    text = str(error)
    handed_on = _LAST_LINE.search(text)
    if handed_on and "Traceback (most recent call last)" in text:
        return shortened(f"{handed_on[1]}: {handed_on[2]}", _LONGEST)
    if isinstance(error, TagCLIPError):
        return shortened(f"{type(error).__name__}: {' '.join(text.splitlines())}", _LONGEST)
    if (what := _lack_of_memory(error)) is not None:
        return (
            f"{type(error).__name__}: found no memory left ({what}), expected room for what was "
            "asked; ask for fewer or smaller images, crops, words or channels, or take a machine "
            "with more"
        )
    return None


def _lack_of_memory(error: BaseException | None) -> str | None:
    """What says that memory ran out; None for another error."""
    if found := _NO_MEMORY.search(str(error)):
        return found[0]
    return "the system gave none" if isinstance(error, MemoryError) else None


def hide_tracebacks(logger_name: str = "detectron2") -> None:
    """Keep the tracebacks of errors that become one line off the terminal; log files get them.

    detectron2 logs every exception that ends a training with its traceback; `run_tool` prints
    the line that counts. ``TAGCLIP_DEBUG=1`` hides nothing.

    Args:
        logger_name: logger whose handlers on stdout and stderr are changed.
    """
    if _is_debugging():
        return
    for handler in logging.getLogger(logger_name).handlers:
        if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
            handler.addFilter(_has_no_mendable_error)


def _has_no_mendable_error(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    is_memory = _lack_of_memory(error) is not None
    is_lost = is_lost_connection(error) or is_lost_socket(error)
    return not (isinstance(error, TagCLIPError) or is_lost or is_memory)


def is_lost_connection(error: BaseException | None) -> bool:
    """Whether a process fails because another one of its run has ended.

    Args:
        error: gloo's has no type of its own, but names the file of its transport.
    """
    from torch.distributed import DistError

    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and "gloo/transport/" in str(error)
    )


def _is_debugging() -> bool:
    return os.environ.get("TAGCLIP_DEBUG") == "1"


def check_output(option: str, path: Path, is_folder: bool = False) -> None:
    """Refuse, before anything long is done, what cannot be written; nothing is created.

    Args:
        option: that names it.
        path: a file, or a folder for files.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        probe_path(path / "file" if is_folder else path)
    except OSError as error:
        raise ConfigError(
            f"{option} {path}: cannot be written ({error.strerror}); choose another place"
        ) from error


@contextmanager
def writing(
    option: str, path: Path, remedy: str = "free space or choose another folder"
) -> Iterator[None]:
    """Say in one line that what an option names cannot be written.

    Args:
        option: that names it.
        path: of it.
        remedy: what to do, behind the semicolon.

    Raises:
        ConfigError: for an OSError of the block.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{option} {path}: cannot be written ({error.strerror or one_line(error)}); {remedy}"
        ) from error


def check_processes(
    num_gpus: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    device: str | None = None,
    option: str = "--num-gpus",
) -> None:
    """Refuse, before anything is started, processes that cannot run; one runs anywhere.

    Args:
        num_gpus: ``--num-gpus``, processes on this machine; 0 and 1 run in this process.
        num_machines: ``--num-machines``.
        machine_rank: ``--machine-rank`` of this machine.
        device: MODEL.DEVICE; on cpu the processes need no GPUs. None if the tool has no such way.
        option: what says how many processes there are.

    Raises:
        ConfigError: there are fewer GPUs, the machines are numbered wrongly, or all processes
            would share one GPU.
    """
    import torch

    if num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise ConfigError(
            f"--machine-rank: found {machine_rank} of --num-machines {num_machines}, expected "
            "0 to --num-machines - 1; give every machine its own number"
        )
    processes = max(num_gpus, 1) * num_machines
    if device is not None and device.startswith("cuda:") and processes > 1:
        raise ConfigError(
            f"MODEL.DEVICE: found {device}, expected cuda with {processes} processes; each takes "
            "a GPU of its own"
        )
    found = torch.cuda.device_count()
    needs_gpu = device is None or device.startswith("cuda")
    other = f", or MODEL.DEVICE cpu for {processes} processes on CPUs" if device else ""
    if num_machines > 1 and found == 0 and needs_gpu:
        raise ConfigError(
            f"--num-machines: found no GPU on this machine, expected one for each of "
            f"{num_machines} machines; use one machine{other}"
        )
    if num_gpus < 0 or (needs_gpu and num_gpus > max(found, 1)):
        raise ConfigError(
            f"{option}: found {found} GPUs on this machine, expected {num_gpus}; "
            f"use {option} {max(found, 1)}{other if num_gpus > 0 else ''}"
        )


def forward_sigterm() -> list[int]:
    """Hand SIGTERM on to the child processes, which save and end by themselves.

    SIGHUP, unless it is ignored, does the same.

    Returns:
        Numbers of the signals, once they come.
    """
    # It takes half the time of a tool's --help.
    import multiprocessing

    def forward(number: int, frame: FrameType | None) -> None:
        leave_terminal(number)
        received.append(number)
        for child in multiprocessing.active_children():
            child.terminate()

    received: list[int] = []
    for each in STOPPING:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, forward)
    return received
