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

    @staticmethod
    def holder(folder: Path) -> str:
        """``process PID on HOST`` that works in a folder, "" if none but this one does."""
        ours = _whose(f"{socket.gethostname()} {os.getpid()}")
        try:
            handle = os.open(folder / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            # Most often it is empty. Else the lock says whether who wrote it still lives.
            if not (text := os.read(handle, 1024).decode(errors="replace")):
                return ""
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return "" if _whose(text) == ours else _whose(text)
        except OSError:
            return ""
        finally:
            os.close(handle)
        return ""

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
            who = _whose(os.read(self._handle, 1024).decode(errors="replace"))
            os.close(self._handle)
            raise ConfigError(
                f"{self._path.parent}: {who} is at work in this folder, expected nobody; wait "
                "until it ends, or choose another folder"
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


def _whose(text: str) -> str:
    """Who wrote the text of a lock file."""
    host, _, pid = text.partition(" ")
    return f"process {pid or '?'} on {host or '?'}"
