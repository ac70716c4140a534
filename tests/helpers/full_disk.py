"""File systems that cannot be written: full after some bytes of a file, or read-only."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Of linux/capability.h: the third version of the header, for this thread; rights of root on files.
_VERSION, _DAC_OVERRIDE = 0x20080522, 1 << 1


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing below `folder` can be created, changed or removed, for root neither.

    Root loses its right to write everywhere, in this thread and what that forks.
    """
    paths = [folder, *(p for p in folder.rglob("*") if not p.is_symlink())]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(modes[path] & ~0o222)
    try:
        with _no_override():
            yield
    finally:
        for path in paths:
            path.chmod(modes[path])


@contextmanager
def _no_override() -> Iterator[None]:
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    # Effective, permitted, inheritable; lower half and upper half.
    rights = (ctypes.c_uint32 * 6)()

    def call(function: str, effective: int | None = None) -> None:
        if effective is not None:
            rights[0] = effective
        if getattr(libc, function)(header, rights):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    call("capget")
    before = rights[0]
    call("capset", before & ~_DAC_OVERRIDE)
    try:
        yield
    finally:
        call("capset", before)
