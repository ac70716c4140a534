"""Who may keep a connection open: so many of an address and in all, and none that does nothing.

Below ASGI: a request whose head does not come to an end never gets to the page's doors, and each
open connection takes one of the files that the system lets a process have.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import h11

from tagclip.projects.webdemo.paces import Paces

__all__ = ["AcceptFilter", "Connections", "most_connections"]

# Files that the page has open for itself: the model, the log, uploads at work.
_OWN_FILES = 200
# Open files above which no page needs more.
_ENOUGH_FILES = 8192
_MOST = 1000
# Of an address: a browser opens six, and keeps one for each tab.
_PER_ADDRESS = 200
# Of an address, new ones per second, and how many may come at once.
_PACE, _BURST = 40, 400
# Bytes and lines of a request without its body.
_LARGEST_HEAD, _MOST_LINES = 1 << 14, 100
_Protocol = TypeVar("_Protocol", bound=asyncio.Protocol)


def most_connections() -> int:
    """Raise the limit of open files as far as this process may; return how many are visitors'."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft == resource.RLIM_INFINITY:
        return _MOST
    return max(8, min(_MOST, soft - _OWN_FILES))


class Connections:
    """All connections of a server.

    Attributes:
        open: protocol of each -> its address.
    """

    def __init__(
        self,
        in_all: int,
        per_address: int = _PER_ADDRESS,
        proxies: Iterable[str] = (),
        silence: float = 10.0,
    ) -> None:
        """Begin with none.

        Args:
            in_all: so many may be open.
            per_address: so many of one address, or half of all if that is less.
            proxies: addresses that speak for many, and of which only `in_all` is the bound.
            silence: seconds after which a connection is closed at which no request is at work, or
                which reads nothing of its answer.
        """
        self.in_all, self.per_address = in_all, min(per_address, in_all // 2)
        self.silence, self._proxies = silence, frozenset(proxies)
        self.open: dict[Any, str] = {}
        self._of: Counter[str] = Counter()
        self._paces = Paces(_PACE, _BURST)
        # The next look at each: one that outlived its connection would keep all that has come.
        self._looks: dict[Any, asyncio.TimerHandle] = {}

    def bounded(self, protocol: type[_Protocol]) -> type[_Protocol]:
        """Return uvicorn's class of a connection with these bounds.

        Args:
            protocol: has ``cycle``, the request at work or the last one, None before the first, and
                ``conn``, h11's connection.
        """
        connections = self

        class Bounded(protocol):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                self.conn = _BoundedHeads(h11.SERVER, _LARGEST_HEAD)

            def connection_made(self, transport: asyncio.Transport) -> None:
                super().connection_made(transport)
                connections._begin(self, transport)

            def connection_lost(self, error: Exception | None) -> None:
                connections._end(self)
                super().connection_lost(error)

        return Bounded

    def _begin(self, connection: Any, transport: asyncio.Transport) -> None:
        address = (transport.get_extra_info("peername") or ("",))[0]
        is_full = address not in self._proxies and (
            self._of[address] >= self.per_address
            or self._paces.wait(address, asyncio.get_running_loop().time(), 0.0) is None
        )
        if is_full or len(self.open) >= self.in_all:
            transport.abort()
            return
        self.open[connection] = address
        self._of[address] += 1
        self._look_later(connection, transport, None, 0)

    def _end(self, connection: Any) -> None:
        address = self.open.pop(connection, None)
        if address is not None:
            self._looks.pop(connection).cancel()
            self._of[address] -= 1
            if not self._of[address]:
                del self._of[address]

    def _look_later(
        self, connection: Any, transport: asyncio.Transport, last: object, unread: int
    ) -> None:
        """Look whether a request has begun since the last one, and what is sent is read."""

        def look() -> None:
            # A server that does not say what it does is left alone.
            cycle = getattr(connection, "cycle", connection)
            is_idle = cycle is None or getattr(cycle, "response_complete", False)
            left = transport.get_write_buffer_size()
            is_unread = left > 0 and left == unread
            if is_unread or (is_idle and cycle is last):
                transport.abort()
            else:
                self._look_later(connection, transport, cycle, left)

        self._looks[connection] = asyncio.get_running_loop().call_later(self.silence, look)


class _BoundedHeads(h11.Connection):
    """Refuses what takes long to take apart, before it does: long heads, bodies in many pieces."""

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            data, _ = self.trailing_data
            end = data.find(b"\n\r\n")
            head = data if end < 0 else data[:end]
            if len(head) > _LARGEST_HEAD or head.count(b"\n") > _MOST_LINES:
                raise h11.RemoteProtocolError("a head too large", error_status_hint=431)
        event = super().next_event()
        # Browsers say how long a body is. Each piece of one that does not may be a byte.
        if type(event) is h11.Request and any(n == b"transfer-encoding" for n, _ in event.headers):
            raise h11.RemoteProtocolError("a body without its length", error_status_hint=411)
        return event


class AcceptFilter(logging.Filter):
    """Says once a minute, in one line, that asyncio finds no file for a connection.

    It would say so thousands of times a second, with a traceback each.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing said."""
        super().__init__()
        self._clock, self._next = clock, 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log a record, which is shortened."""
        if "socket.accept() out of system resource" not in record.getMessage():
            return True
        if self._clock() < self._next:
            return False
        self._next = self._clock() + 60
        record.msg = "connections: found no file left for another one (see ulimit -n); it waits"
        record.args = record.exc_info = record.exc_text = None
        return True
