"""What a process that reads a picture may do wrong; other processes import these."""

from __future__ import annotations

import os
import resource
import signal
import time
from multiprocessing.connection import Connection

from tagclip.errors import DatasetError


def work(path: str, max_pixels: int, sender: Connection) -> None:
    """Never end."""
    while True:
        pass


def wait(path: str, max_pixels: int, sender: Connection) -> None:
    """Take no time of the processor."""
    time.sleep(3600)


def fill(path: str, max_pixels: int, sender: Connection) -> None:
    """Take all memory, in pieces."""
    held = []
    while True:
        held.append(bytearray(1 << 20))


def fill_in_library(path: str, max_pixels: int, sender: Connection) -> None:
    """Take all memory, of which a library says that the picture is damaged."""
    try:
        fill(path, max_pixels, sender)
    except MemoryError as error:
        raise DatasetError("damaged") from error


def die(path: str, max_pixels: int, sender: Connection) -> None:
    """End as by a fault of a decoder."""
    os.kill(os.getpid(), signal.SIGKILL)


def describe(path: str, max_pixels: int, sender: Connection) -> None:
    """Say what bounds this process."""
    names = ("RLIMIT_CORE", "RLIMIT_CPU")
    limits = [resource.getrlimit(getattr(resource, name)) for name in names]
    sender.send(("", (limits, os.getpriority(os.PRIO_PROCESS, 0))))
