"""Logging from inside the model, and none at all."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from detectron2.utils.events import get_event_storage

__all__ = ["log_scalars", "silence"]


def log_scalars(values: Mapping[str, float]) -> None:
    """Log into the trainer's storage; a model called without a trainer has none."""
    try:
        storage = get_event_storage()
    except AssertionError:
        return
    storage.put_scalars(**values)


@contextmanager
def silence() -> Iterator[None]:
    """Log nothing inside."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
