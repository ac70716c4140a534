"""Scalars that the model logs while it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from detectron2.utils.events import get_event_storage

__all__ = ["averaged", "log_scalars"]

_Call = tuple[Mapping[str, float], float]
_calls: ContextVar[list[_Call] | None] = ContextVar("_calls", default=None)


def log_scalars(values: Mapping[str, float], weight: float = 1) -> None:
    """Log into the trainer's storage; a model called without a trainer has none.

    Args:
        values: by name; the first one is in every such call.
        weight: of these values in the mean over the parts of a batch, see `averaged`.
    """
    calls = _calls.get()
    if calls is not None:
        calls.append((values, weight))
        return
    try:
        storage = get_event_storage()
    except AssertionError:
        return
    storage.put_scalars(**values)


@contextmanager
def averaged() -> Iterator[None]:
    """Log what is logged inside once, at the end: means over the calls of one first name.

    A name that only some of these calls have counts as 0 in the others.
    """
    token = _calls.set([])
    try:
        yield
        calls = _calls.get()
    finally:
        _calls.reset(token)
    groups: dict[str, list[_Call]] = {}
    for call in calls:
        groups.setdefault(next(iter(call[0])), []).append(call)
    for group in groups.values():
        total = sum(weight for _, weight in group)
        names = dict.fromkeys(name for values, _ in group for name in values)
        # Where nothing was counted, every call says the same.
        log_scalars(
            {n: sum(v.get(n, 0) * w for v, w in group) / total for n in names}
            if total
            else group[0][0]
        )
