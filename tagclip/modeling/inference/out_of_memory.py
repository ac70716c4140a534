"""What to do when an accelerator's memory is full: say it once, free what can be, try smaller."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from detectron2.utils.logger import log_first_n

__all__ = ["none_if_out_of_memory", "warn_and_free"]

T = TypeVar("T")


def none_if_out_of_memory(function: Callable[[], T]) -> T | None:
    """Return what the function returns; None if the accelerator's memory is full."""
    try:
        return function()
    except torch.OutOfMemoryError:
        # The error holds the frames of the attempt, and with them its tensors: it ends here.
        return None


def warn_and_free(text: str, logger_name: str) -> None:
    """Log a warning, each text once, and give the allocator's unused blocks back."""
    log_first_n(logging.WARNING, text, name=logger_name, key="message")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
