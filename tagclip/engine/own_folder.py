"""OUTPUT_DIR belongs to one run at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from detectron2.utils import comm

from tagclip.errors import ConfigError
from tagclip.utils.run_lock import RunLock

__all__ = ["own_folder"]


@contextmanager
def own_folder(folder: str | Path) -> Iterator[None]:
    """Keep other runs out of OUTPUT_DIR within ``with``; every process calls this.

    The main process, which writes, holds the lock for all: it ends with it. Within another
    ``own_folder`` of the same folder nothing is done.

    Args:
        folder: OUTPUT_DIR; "" is none.

    Raises:
        ConfigError: in every process: another run is at work there, or it cannot be written.
    """
    refused = ""
    with ExitStack() as stack:
        is_ours = not folder or RunLock.is_held(Path(folder))
        if comm.is_main_process() and not is_ours:
            try:
                stack.enter_context(RunLock(Path(folder), "OUTPUT_DIR"))
            except ConfigError as error:
                refused = str(error)
        if refused := comm.all_gather(refused)[0]:
            raise ConfigError(refused)
        yield
