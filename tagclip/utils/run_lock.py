"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tagclip.errors import ConfigError

__all__ = ["LOCK_NAME", "RunLock"]

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"


class RunLock:
    """Keeps other processes, also of other machines that share it, out of a folder within ``with``.

    The lock is the kernel's: it ends with the process, however that ends. The file ``.lock``
    stays; while it is held, it says by whom.
    """

    def __init__(self, folder: Path) -> None:
        """Do not lock yet.

        Args:
            folder: is created.
        """
        self._path = folder / LOCK_NAME
        self._handle = -1

    def __enter__(self) -> RunLock:
        """Lock.

        Raises:
            ConfigError: another process works there, or the folder cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ConfigError(
                f"{self._path.parent}: cannot be written ({error.strerror}); choose another folder"
            ) from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            host, _, pid = os.read(self._handle, 1024).decode(errors="replace").partition(" ")
            os.close(self._handle)
            raise ConfigError(
                f"{self._path.parent}: process {pid or '?'} on {host or '?'} is at work in this "
                "folder, expected nobody; wait until it ends, or choose another folder"
            ) from error
        except OSError as error:
            logger.warning(
                "%s: this file system has no locks (%s); start no second run in this folder",
                self._path.parent, error.strerror,
            )  # fmt: skip
        self._say(f"{socket.gethostname()} {os.getpid()}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._say("")
        os.close(self._handle)

    def _say(self, text: str) -> None:
        # A full disk does not matter: the lock holds all the same.
        with suppress(OSError):
            os.truncate(self._handle, 0)
            os.pwrite(self._handle, text.encode(), 0)
