"""What stays unsaid: warnings that no user can mend, and logging while something is tried."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_imports", "silence"]


def quiet_imports() -> None:
    """Keep what detectron2 and torch say about themselves off the terminal.

    Must be called before they are imported. Their import makes torch warn about torch.jit.script,
    and detectron2's environment report that nvcc is there without a GPU; several processes make
    torch warn about what detectron2 and torch themselves call.
    """
    warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


@contextmanager
def silence(level: int = logging.CRITICAL) -> Iterator[None]:
    """Log nothing inside.

    Args:
        level: the highest that is not logged.
    """
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)
