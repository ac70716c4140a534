"""Items made ready by threads while those before them are used, within a budget of memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Condition, Thread
from typing import TypeVar

from tagclip.errors import ConfigError
from tagclip.structures.vocabulary_class import is_int

__all__ = ["BUDGET", "check_budget", "read_ahead"]

S = TypeVar("S")
T = TypeVar("T")
# Bytes of images under way, where nobody says how many.
BUDGET = 512 * 2**20
# Under way for each thread, however small they are.
_MOST_ITEMS = 32


def read_ahead(
    items: Iterable[S],
    prepare: Callable[[S], T],
    size_of: Callable[[S], int],
    budget: int = BUDGET,
    threads: int = 1,
) -> Iterator[T]:
    """Yield ``prepare(item)`` of every item, in order.

    Under way is an item from the moment that its preparation may begin until the caller asks for
    the item after it. Closing the iterator ends the threads, as its end and an error do.

    Args:
        items: taken by a thread of their own, one more than is under way.
        prepare: runs in other threads, for several items at the same time.
        size_of: how many bytes an item takes while it is under way.
        budget: the sum of these sizes is never larger, unless a single item is; it goes alone.
        threads: how many items are prepared at the same time, at least 1.

    Raises:
        ConfigError: ``budget`` or ``threads`` is no such number.
        Exception: what ``prepare``, ``size_of`` or ``items`` raised, after the items before it.
    """
    check_budget(budget)
    if not is_int(threads) or threads < 1:
        raise ConfigError(f"threads: found {threads!r:.80}, expected a whole number, 1 or more")
    room = _Room(budget, _MOST_ITEMS * threads)
    ready: SimpleQueue[tuple[Future[T], int] | None] = SimpleQueue()
    pool = ThreadPoolExecutor(threads, "read_ahead")

    def feed() -> None:
        try:
            for item in items:
                size = size_of(item)
                if not room.take(size):
                    return
                ready.put((pool.submit(prepare, item), size))
            ready.put(None)
        except BaseException as error:
            failed: Future[T] = Future()
            failed.set_exception(error)
            ready.put((failed, 0))

    # A daemon: an iterator that nobody closes does not keep the process from its end.
    feeder = Thread(target=feed, name="read_ahead_items", daemon=True)
    feeder.start()
    try:
        while (entry := ready.get()) is not None:
            yield entry[0].result()
            size = entry[1]
            del entry
            room.give_back(size)
    finally:
        # At the end of the process a daemon is gone, maybe with a lock in its hands.
        if not sys.is_finalizing():
            room.close()
            feeder.join()
            pool.shutdown(cancel_futures=True)


def check_budget(budget: int) -> None:
    """Refuse what is no number of bytes.

    Raises:
        ConfigError: as it says.
    """
    if not is_int(budget) or budget < 0:
        raise ConfigError(
            f"budget: found {budget!r:.80}, expected a whole number of bytes, 0 or more"
        )


class _Room:
    """Room for bytes of items: within a budget, or for one item alone."""

    def __init__(self, budget: int, most_items: int) -> None:
        self._budget, self._most_items = budget, most_items
        self._bytes = self._items = 0
        self._is_closed = False
        self._changed = Condition()

    def take(self, size: int) -> bool:
        """Wait until there is room; False: there will be none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._has_room(size))
            self._bytes += size
            self._items += 1
            return not self._is_closed

    def give_back(self, size: int) -> None:
        with self._changed:
            self._bytes -= size
            self._items -= 1
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _has_room(self, size: int) -> bool:
        if not self._items:
            return True
        return self._items < self._most_items and self._bytes + size <= self._budget
