"""Bytes of the files that visitors bring and save, by address."""

from __future__ import annotations

import errno
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["FULL", "UploadSpace", "megabytes"]

# What a disk answers that is full.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Seconds between two looks for deleted files, where room lacks and at the most.
_LOOK, _SWEEP = 5.0, 600.0
# How gradio calls the folder of a file: sha256 of its content.
_OF_CONTENT = re.compile("[0-9a-f]{64}")


class UploadSpace:
    """Bytes of files, per visitor (address) and in all; who needs more loses the own oldest.

    Uploads and saved results; threads may share it.

    Nothing here takes longer the more files there are, but looking which of them are deleted; that
    is done where room lacks, and not again at once, and now and then.
    """

    def __init__(
        self,
        per_visitor: int,
        in_all: int,
        least: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with nothing.

        Args:
            per_visitor: bytes of the files and of what is arriving.
            in_all: the same, of all visitors.
            least: bytes that a file counts for if it has fewer: it takes place in a file system.
            clock: seconds.
        """
        self.per_visitor, self.in_all, self.least = per_visitor, in_all, least
        # Of each visitor the files, the oldest first, and bytes that are arriving.
        self._files: dict[str, dict[Path, int]] = {}
        self._arriving: Counter[str] = Counter()
        self._owners: dict[Path, set[str]] = {}
        # Bytes of each visitor's files; of those that nobody else has; of all files.
        self._own: Counter[str] = Counter()
        self._alone: Counter[str] = Counter()
        self._all = self._all_arriving = 0
        self._clock, self._looked, self._swept = clock, -math.inf, clock()
        self._lock = threading.RLock()

    @property
    def held(self) -> int:
        """Bytes of all."""
        return self._all + self._all_arriving

    def held_by(self, visitor: str) -> int:
        """Bytes of one visitor."""
        return self._own[visitor] + self._arriving[visitor]

    def refusal(self, visitor: str, nbytes: int) -> str:
        """Say why so many bytes more have no room, even if the visitor's own files went.

        Args:
            visitor: the address.
            nbytes: at most so many will come.

        Returns:
            One line, or "" if there is room.
        """
        with self._lock:
            text = self._refusal(visitor, nbytes)
            if text and self._forget_deleted():
                text = self._refusal(visitor, nbytes)
            return text

    def _refusal(self, visitor: str, nbytes: int) -> str:
        for who, held, most in (
            ("you", self._arriving[visitor], self.per_visitor),
            ("all visitors", self.held - self._alone[visitor], self.in_all),
        ):
            if held + nbytes > most:
                return (
                    f"found {megabytes(held)} of {who} here and {megabytes(nbytes)} to come, "
                    f"expected at most {megabytes(most)} together; try again later"
                )
        return ""

    def take(self, visitor: str, nbytes: int) -> str:
        """Count bytes that have come; the visitor's oldest files make room for them.

        What is announced counts for nothing: a slow upload would keep others out.

        Args:
            visitor: the address.
            nbytes: of a piece.

        Returns:
            "", or `refusal`: then nothing is counted, and no file goes.
        """
        with self._lock:
            if text := self.refusal(visitor, nbytes):
                return text
            while (
                self.held_by(visitor) + nbytes > self.per_visitor
                or self.held + nbytes > self.in_all
            ) and self.give_room(visitor):
                pass
            self._count(visitor, nbytes)
            return ""

    def give_room(self, visitor: str) -> bool:
        """Remove the oldest file of a visitor, unless others have it, too; False: there is none."""
        with self._lock:
            path = next(iter(self._files.get(visitor, {})), None)
            if path is None:
                return False
            if self._drop(visitor, path):
                path.unlink(missing_ok=True)
                _remove_folder(path)
            return True

    def arrived(self, visitor: str, nbytes: int, paths: Iterable[str]) -> None:
        """Put the files in the place of so many bytes that were taken."""
        with self._lock:
            self._count(visitor, -nbytes)
            for path in map(Path, paths):
                # The newest stand last.
                self._drop(visitor, path)
                if path.is_file():
                    self._add(visitor, path, max(path.stat().st_size, self.least))
            # The page deletes what is old, but for its folders.
            if self._clock() >= self._swept + _SWEEP:
                self._swept = self._clock()
                self._forget_deleted()

    def _count(self, visitor: str, nbytes: int) -> None:
        self._all_arriving += nbytes
        self._arriving[visitor] += nbytes
        if not self._arriving[visitor]:
            del self._arriving[visitor]

    def _add(self, visitor: str, path: Path, nbytes: int) -> None:
        owners = self._owners.setdefault(path, set())
        # Named after its content: of others it has the same size.
        nbytes = next((self._files[who][path] for who in owners), nbytes)
        if not owners:
            self._all += nbytes
            self._alone[visitor] += nbytes
        elif len(owners) == 1:
            self._alone[next(iter(owners))] -= nbytes
        owners.add(visitor)
        self._own[visitor] += nbytes
        self._files.setdefault(visitor, {})[path] = nbytes

    def _drop(self, visitor: str, path: Path) -> bool:
        """Forget a file of a visitor, who may not have it; return whether nobody has it now."""
        files = self._files.get(visitor, {})
        if path not in files:
            return False
        nbytes, owners = files.pop(path), self._owners[path]
        owners.remove(visitor)
        self._own[visitor] -= nbytes
        if not owners:
            del self._owners[path]
            self._all -= nbytes
            self._alone[visitor] -= nbytes
        elif len(owners) == 1:
            self._alone[next(iter(owners))] += nbytes
        if not files:
            for kept in (self._files, self._own, self._alone):
                kept.pop(visitor, None)
        return not owners

    def _forget_deleted(self) -> bool:
        """Forget files that the page has deleted; return whether it was looked for them."""
        if self._clock() < self._looked + _LOOK:
            return False
        for path in [path for path in self._owners if not path.is_file()]:
            for visitor in list(self._owners[path]):
                self._drop(visitor, path)
            _remove_folder(path)
        self._looked = self._clock()
        return True


def _remove_folder(path: Path) -> None:
    """Remove the folder that gradio made for a file, named after its content, if that was all."""
    if _OF_CONTENT.fullmatch(path.parent.name):
        with suppress(OSError):
            path.parent.rmdir()


def megabytes(nbytes: int) -> str:
    """Return bytes in words."""
    return f"{nbytes / 1e6:.1f} MB"
