"""A log that cannot be written costs its lines, not the run: said once, and not as a traceback."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["lost_logs"]


@contextmanager
def lost_logs(*, of_worker: bool = False) -> Iterator[None]:
    """Say in one line on stderr that a log cannot be written, once per log, and go on.

    logging prints a traceback for every line that is lost, and TensorBoard's thread one as it ends.
    Nothing is said of a pipe: who has closed it, as ``| head -1`` does, knows.

    Args:
        of_worker: say nothing of stdout, which the main process writes to as well, and lead it
            nowhere in the end, where Python would complain.
    """
    lost: dict[str, Any] = {}
    handle, hook = logging.Handler.handleError, threading.excepthook

    def say(name: str, error: OSError, stream: Any = None) -> None:
        if name not in lost:
            lost[name] = stream
            if not (of_worker and stream is sys.stdout):
                _say(name, error)

    def handle_error(handler: logging.Handler, record: logging.LogRecord) -> None:
        error, stream = sys.exc_info()[1], getattr(handler, "stream", None)
        if not isinstance(error, OSError):
            handle(handler, record)
        elif stream is not sys.stderr:
            say(str(getattr(stream, "name", "log")), error, stream)

    def handle_thread(ended: threading.ExceptHookArgs) -> None:
        is_tensorboard = type(ended.thread).__module__.startswith("tensorboard.")
        if is_tensorboard and isinstance(ended.exc_value, OSError):
            say("events.out.tfevents (TensorBoard)", ended.exc_value)
        else:
            hook(ended)

    logging.Handler.handleError, threading.excepthook = handle_error, handle_thread
    try:
        yield
    finally:
        logging.Handler.handleError, threading.excepthook = handle, hook
        for stream in lost.values():
            # Of a main process the command line looks after stdout.
            _drop(None if stream is sys.stdout and not of_worker else stream)


def _say(name: str, error: OSError) -> None:
    if isinstance(error, BrokenPipeError):
        return
    # It may be the same file.
    with suppress(OSError):
        print(
            f"{name}: cannot be written ({error.strerror}); its lines are lost, the run goes on: "
            "free space",
            file=sys.stderr,
        )


def _drop(stream: Any) -> None:
    """Lead a log nowhere, so that what is left of it does not fail when Python closes it."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
