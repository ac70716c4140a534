"""Processes hand things on by sockets, files in the folder for temporary ones."""

from __future__ import annotations

import tempfile
from multiprocessing import connection

from tagclip.errors import ConfigError
from tagclip.utils.files import temporary_place

__all__ = ["check_sockets", "is_lost_socket"]


def check_sockets(needed_by: str, otherwise: str = "") -> None:
    """Make a socket where `multiprocessing` will make its own, and remove it.

    Those are made late, by threads and by processes whose errors nobody waits for.

    Args:
        needed_by: what hands things on, for the message.
        otherwise: what else would help, for its end.

    Raises:
        ConfigError: none can be made there, as in a folder whose path is longer than the system
            takes (107 bytes on Linux, 103 on macOS, of which multiprocessing's own names are 32).
    """
    try:
        connection.Listener().close()
    except OSError as error:
        place = tempfile.tempdir or temporary_place()
        raise ConfigError(
            f"TMPDIR: found {place}, where no socket can be made ({error.strerror or error}), "
            f"expected a folder with a shorter path and room for some, by which {needed_by}; set "
            f"TMPDIR=/tmp, or another{otherwise}"
        ) from error


def is_lost_socket(error: BaseException | None) -> bool:
    """Whether an error says that a socket has gone by which processes hand things on."""
    if not isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        return False
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") == connection.__name__
