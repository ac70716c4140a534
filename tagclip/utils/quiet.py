"""What stays unsaid: warnings that no user can mend, and logging while something is tried."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_imports", "silence"]

# How they begin.
_UNSAID = (
    ("`torch.jit.script`", FutureWarning),
    ("`broadcast_buffers` is deprecated", FutureWarning),
    ("TypedStorage is deprecated", UserWarning),
)


def quiet_imports() -> None:
    """Keep what detectron2 and torch say about themselves off the terminal.

    Must be called before they are imported. Their import makes torch warn about torch.jit.script,
    and detectron2's environment report that nvcc is there without a GPU; several processes make
    torch warn about what detectron2 and torch themselves call. Processes of multiprocessing that
    are started later are as quiet.
    """
    for text, kind in _UNSAID:
        warnings.filterwarnings("ignore", text, kind)
        # What Python hands to them, as -W; they import before they run anything of ours.
        if (option := f"ignore:{text}:{kind.__name__}") not in sys.warnoptions:
            sys.warnoptions.append(option)
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
