"""Processes that end with the one that started them, even if that is killed."""

from __future__ import annotations

import os
from multiprocessing import connection, parent_process
from threading import Thread

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """Call it in a process of a pool: without it, it would wait for its next task for ever."""
    Thread(target=_end, daemon=True).start()


def _end() -> None:
    connection.wait([parent_process().sentinel])
    os._exit(1)
