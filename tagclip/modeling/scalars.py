"""Scalars that the model logs while it is trained."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.utils.events import get_event_storage

__all__ = ["log_scalars"]


def log_scalars(values: Mapping[str, float]) -> None:
    """Log into the trainer's storage; a model called without a trainer has none."""
    try:
        storage = get_event_storage()
    except AssertionError:
        return
    storage.put_scalars(**values)
