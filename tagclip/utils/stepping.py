"""Places between the steps of a long computation, where it may be stopped or wait for others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["between_steps", "pause_point"]

_CALL: ContextVar[Callable[[], None] | None] = ContextVar("between_steps", default=None)


@contextmanager
def between_steps(call: Callable[[], None]) -> Iterator[None]:
    """Have a function called between the steps of what is computed inside, in this thread.

    Steps are batches of windows and of prompts, and parts of the work on their logits. What the
    function raises ends the computation; so it may check a time limit, or let others go first.

    Args:
        call: takes nothing; what it returns does not matter.
    """
    token = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(token)


def pause_point() -> None:
    """Stand between two steps: calls the function of the innermost `between_steps`, if any."""
    call = _CALL.get()
    if call is not None:
        call()
