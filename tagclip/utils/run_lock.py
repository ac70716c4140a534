"""One process at a time in a folder, or at a file."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from weakref import WeakSet

from tagclip.errors import ConfigError
from tagclip.utils.in_the_way import why_no_folder

__all__ = ["LOCK_NAME", "RunLock", "in_turn"]

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
# Bytes of a file's name in that of its lock: file systems take 255.
_LONGEST = 255 - len("..lock")


class RunLock:
    """Keeps other processes, also of other machines that share it, out of a folder within ``with``.

    The lock is the kernel's: it ends with the process, however that ends, and its forked children
    do not hold it. While it is held, the file ``.lock`` says by whom; then the file goes. That of a
    killed process stays and locks nothing.
    """

    def __init__(self, folder: Path, option: str = "", file: str = "") -> None:
        """Do not lock yet.

        Args:
            folder: is created with those above it; they go again if nothing is written there.
            option: what names the folder, for messages.
            file: name of a file in the folder that is locked instead, by ``.NAME.lock``.
        """
        self._folder = folder
        short = os.fsdecode(os.fsencode(file)[:_LONGEST])
        self._path = folder / (f".{short}.lock" if file else LOCK_NAME)
        self._name = " ".join(filter(None, [option, str(folder / file)]))
        self._place = "file" if file else "folder"
        self._handle = -1
        # Folders that were not there before, lowest first.
        self._new: list[Path] = []
        self._began: os.stat_result | None = None

    @staticmethod
    def holder(folder: Path) -> str:
        """``process PID on HOST`` that works in a folder, "" if none but this one does."""
        ours = _whose(_own_text())
        try:
            handle = os.open(folder / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            # The lock says whether who wrote it still lives.
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

    @staticmethod
    def is_held(folder: Path) -> bool:
        """Whether this process itself works in a folder."""
        return any(lock._path.absolute() == (folder / LOCK_NAME).absolute() for lock in _held)

    @staticmethod
    def check_held(folder: Path) -> None:
        """Before this process writes to a folder: refuse if it, or one above, is not its own still.

        One that was moved or removed would be made anew, or be that of another run by now. A lock
        whose file alone was removed is taken again.

        Raises:
            ConfigError: the folder has gone or is another one, or another process works there.
        """
        place = folder.absolute()
        for lock in list(_held):
            if lock._place == "folder" and place.is_relative_to(lock._folder.absolute()):
                lock._check()

    def __enter__(self) -> RunLock:
        """Lock.

        Raises:
            ConfigError: another process works there, or the folder cannot be written.
        """
        folder = self._folder
        try:
            self._new = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            while not self._take():
                pass
            self._began = os.stat(folder)
        # A zero byte in a path is a ValueError.
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            if isinstance(error, (FileExistsError, NotADirectoryError)):
                reason = why_no_folder(folder)
            raise ConfigError(
                f"{self._name}: found no folder to write to ({reason}), expected one; name another"
            ) from error
        _held.add(self)
        self._say(_own_text())
        return self

    def _check(self) -> None:
        with _checking:
            try:
                if self._is_own():
                    return
                is_same = os.path.samestat(self._began, os.stat(self._folder))
            except (FileNotFoundError, NotADirectoryError):
                is_same = False
            except OSError:
                # Whatever keeps the folder from being looked at; the write says so in its own way.
                return
            if not is_same:
                who = RunLock.holder(self._folder)
                raise ConfigError(
                    f"{self._name}: found it moved or removed{f', now of {who}' if who else ''}, "
                    "expected it to stay until this ends; start again, a training with --resume in "
                    "the folder that has its checkpoints"
                )
            held = self._handle
            try:
                while not self._take():
                    pass
            except OSError:
                self._handle = held
                return
            except ConfigError:
                os.close(held)
                raise
            os.close(held)
            self._say(_own_text())

    def _is_own(self) -> bool:
        """Whether the lock is still at its path."""
        try:
            if os.path.samestat(os.fstat(self._handle), os.stat(self._path)):
                return True
            # Some file systems of networks give a file another number after a while.
            return self._path.read_text() == _own_text()
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _take(self) -> bool:
        """Open and lock; False if whoever held the lock has just removed the file."""
        self._handle = _open(self._path)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = _whose(os.read(self._handle, 1024).decode(errors="replace"))
            os.close(self._handle)
            self._handle = -1
            raise ConfigError(
                f"{self._name}: {who} is at work in this {self._place}, expected nobody; wait "
                f"until it ends, or choose another {self._place}"
            ) from error
        except OSError as error:
            logger.warning(
                "%s: this file system has no locks (%s); start no second run in this %s",
                self._name, error.strerror, self._place,
            )  # fmt: skip
        with suppress(FileNotFoundError):
            is_same = os.path.samestat(os.fstat(self._handle), os.stat(self._path))
            # One that another user's dead process left cannot say who is here now.
            if is_same and (_is_writable(self._handle) or not _removed(self._path)):
                return True
        os.close(self._handle)
        return False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _held.discard(self)
        if self._handle < 0:
            return
        # First the name, then the lock: who opens it in between sees that it is gone.
        with suppress(OSError):
            # Not that of another run, where the folder was moved away.
            if self._is_own():
                self._path.unlink()
                # A run that was refused before it wrote anything leaves no folder.
                for folder in self._new:
                    folder.rmdir()
        os.close(self._handle)
        self._handle = -1

    def _say(self, text: str) -> None:
        # A full disk does not matter: the lock holds all the same.
        with suppress(OSError):
            os.truncate(self._handle, 0)
            os.pwrite(self._handle, text.encode(), 0)

    def _drop(self) -> None:
        """In a forked child: leave the lock to the parent, whose end is then its end."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1


def _open(path: Path) -> int:
    """Open the file of a lock; who may not write that of another user can lock it all the same."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    # Whatever the umask: who may not even read it would not know who is there.
    with suppress(OSError):
        os.fchmod(handle, os.fstat(handle).st_mode | 0o444)
    return handle


def _is_writable(handle: int) -> bool:
    return fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def _removed(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Within ``with``, be alone among those that name this file; the others wait. It stays.

    iopath's `file_lock` opens the file to write it, which another user's may not be.

    Args:
        path: the file, which is made; of it nothing is read or written.

    Raises:
        OSError: it cannot be opened.
    """
    handle = _open(path)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("%s: this file system has no locks (%s)", path, error.strerror)
        yield
    finally:
        os.close(handle)


_held: WeakSet[RunLock] = WeakSet()
_checking = threading.Lock()


def _drop_all() -> None:
    for lock in list(_held):
        lock._drop()
    _held.clear()


# A loader process that outlives a killed training by seconds would lock out who resumes it.
os.register_at_fork(after_in_child=_drop_all)


def _own_text() -> str:
    """What the file of a lock of this process says."""
    return f"{socket.gethostname()} {os.getpid()}"


def _whose(text: str) -> str:
    """Who wrote the text of a lock file."""
    host, _, pid = text.partition(" ")
    return f"process {pid or '?'} on {host or '?'}"
