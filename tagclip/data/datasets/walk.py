"""One walk over the files of a dataset: which there are, and something done with each."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

from tqdm import tqdm

from tagclip.errors import DatasetError
from tagclip.utils.parent import end_with_parent, leave_signals_to_parent, unsignalled

__all__ = ["files_below", "files_matching", "map_files"]

Item = TypeVar("Item")
Result = TypeVar("Result")
# What a process of `map_files` calls.
_function: Callable[[Any], Any]


def files_below(root: str | Path) -> Iterator[Path]:
    """Yield the files of a folder and of all below it, each real folder once.

    Links to folders are followed after all that is really there, so that one that leads back adds
    nothing. What begins with a dot is no data: other programs leave ``._x.png`` and
    ``.ipynb_checkpoints`` behind.
    """
    seen: set[tuple[int, int]] = set()
    tops = [str(root)]
    while tops:
        links: list[str] = []
        for top in tops:
            for folder, below, names in os.walk(top):
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    below.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                below[:] = sorted(name for name in below if not name.startswith("."))
                paths = (os.path.join(folder, name) for name in below)
                links += filter(os.path.islink, paths)
                yield from (Path(folder, n) for n in sorted(names) if not n.startswith("."))
        tops = links


def files_matching(pattern: str | Path) -> tuple[Path, Iterator[Path]]:
    """Find the files of a glob, where ``**`` enters each real folder once, as `files_below`.

    `glob.glob` follows links: with one that leads back it finds a file up to forty times, with two
    it may not end.

    Args:
        pattern: a path with wildcards, none of which stands for a leading dot.

    Returns:
        The folders before the first wildcard, or before the file; the files, in any order.
    """
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts[:-1]) if glob.has_magic(part)), len(parts) - 1)
    top, wanted = Path(*parts[:fixed]), parts[fixed:]
    if "**" not in wanted:
        return top, filter(Path.is_file, map(Path, glob.glob(str(pattern))))
    files = files_below(top)
    return top, (file for file in files if _matches(file.relative_to(top).parts, wanted))


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the parts of a path are those of a pattern."""
    if not parts or not wanted:
        return not parts and all(part == "**" for part in wanted)
    if wanted[0] == "**":
        return _matches(parts, wanted[1:]) or _matches(parts[1:], wanted)
    return fnmatch.fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


class _Bar(tqdm):
    """tqdm's own lock is one of processes, which a training that is killed leaves to the system."""


_Bar.set_lock(RLock())


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
    bar = partial(_Bar, desc=title, total=len(items), unit="file", disable=None)
    if processes is None:
        pool, chunk = ThreadPoolExecutor(min(8, os.cpu_count() or 1)), 1
    elif processes < 2:
        yield from bar(map(function, items))
        return
    else:
        # The function goes to each process once, not with each item: it may hold all predictions.
        pool = ProcessPoolExecutor(processes, initializer=_begin, initargs=(function,))
        function = _call
        chunk = max(1, min(32, len(items) // (4 * processes)))
    try:
        with pool:
            with unsignalled():
                results = pool.map(function, items, chunksize=chunk)
            yield from bar(results)
    except BrokenProcessPool as error:
        raise DatasetError(
            f"{title}: a worker process died, maybe for lack of memory; use fewer --workers, or 1 "
            "to see at which file"
        ) from error


def _begin(function: Callable[[Any], Any]) -> None:
    """Start a process of `map_files`."""
    global _function
    _function = function
    end_with_parent()
    leave_signals_to_parent()


def _call(item: Any) -> Any:
    return _function(item)
