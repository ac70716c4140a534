"""One walk over the files of a dataset: in parallel, in order, behind a progress bar."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from tqdm import tqdm

from tagclip.errors import DatasetError

__all__ = ["map_files"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_files(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    title: str,
    processes: int | None = None,
) -> Iterator[Result]:
    """Call a function on every item; yields the results in the order of the items.

    There is a progress bar if stderr is a terminal.

    Args:
        function: reads the files of an item; picklable if it runs in processes.
        items: what it is called with.
        title: of the progress bar.
        processes: how many; below 2 nothing runs in parallel. None takes threads instead, 8 at
            most: decoders release the lock of Python, and what holds a GPU must not fork.

    Raises:
        DatasetError: a process died.
        Exception: whatever the function raises; what has not begun is then dropped.
    """
    bar = partial(tqdm, desc=title, total=len(items), unit="file", disable=None)
    if processes is None:
        pool, chunk = ThreadPoolExecutor(min(8, os.cpu_count() or 1)), 1
    elif processes < 2:
        yield from bar(map(function, items))
        return
    else:
        # Ctrl-C is the business of this process alone.
        ignoring = (signal.SIGINT, signal.SIG_IGN)
        pool = ProcessPoolExecutor(processes, initializer=signal.signal, initargs=ignoring)
        chunk = max(1, min(32, len(items) // (4 * processes)))
    try:
        with pool:
            yield from bar(pool.map(function, items, chunksize=chunk))
    except BrokenProcessPool as error:
        raise DatasetError(
            f"{title}: a worker process died, maybe for lack of memory; use fewer --workers, or 1 "
            "to see at which file"
        ) from error
