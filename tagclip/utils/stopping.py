"""What SIGTERM, a closed terminal and Ctrl-C do to a command: what is open is finished or removed.

SIGTERM (a cluster, ``docker stop``, ``kill``) and SIGHUP (the terminal is closed) would end a
process at once, in the middle of a file. Here they unwind it, as Ctrl-C does.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

__all__ = ["STOPPING", "StopRequest", "Stopped", "explained", "leave_terminal", "stoppable"]

# Those that end a process unasked; systems without terminals have no SIGHUP.
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C's ends the process.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, *text: str) -> None:
        """Keep the signal and what there is to say, if anything."""
        super().__init__(*text)
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `Stopped` within; those that are ignored (nohup) stay ignored.

    Further ones are ignored, so that cleaning up is not broken off. Python knows signals in the
    main thread only: in another one nothing is changed.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in previous:
            signal.signal(each, signal.SIG_IGN)
        leave_terminal(number)
        raise Stopped(number)

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        mine = [each for each in STOPPING if signal.getsignal(each) is signal.SIG_DFL]
        previous.update({each: signal.signal(each, stop) for each in mine})
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


class StopRequest:
    """Within ``with`` a first SIGTERM, SIGHUP or Ctrl-C is kept for a loop to look at.

    Attributes:
        number: of the signal; 0: none has come.
    """

    def __init__(self, what: str) -> None:
        """Do not listen yet.

        Args:
            what: is finished after a first Ctrl-C; a second one raises KeyboardInterrupt.
        """
        self.number = 0
        self._what = what
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for each in (*STOPPING, signal.SIGINT):
                # A shell makes what runs in the background ignore Ctrl-C, nohup SIGHUP.
                if signal.getsignal(each) is not signal.SIG_IGN:
                    self._previous[each] = signal.signal(each, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        leave_terminal(number)
        if number == signal.SIGINT:
            if self.number:
                raise KeyboardInterrupt
            os.write(2, f"Ctrl-C: finishing {self._what}; once more stops at once\n".encode())
        self.number = number

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())


@contextmanager
def explained(text: str | Callable[[], str]) -> Iterator[None]:
    """Give an interruption that passes a text, which `run_tool` prints.

    Args:
        text: what is there now and how to go on, or what says so then.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        error.args = error.args or (text if isinstance(text, str) else text(),)
        raise


def leave_terminal(number: int) -> None:
    """After SIGHUP write no more to a terminal that has been closed: every line would fail.

    Args:
        number: of the signal that came; after others nothing is done.
    """
    if number != getattr(signal, "SIGHUP", None):
        return
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)
