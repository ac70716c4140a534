"""What keeps a folder from being made, in the words of a message."""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["lowest_there", "why_no_folder"]


def lowest_there(path: str | Path) -> Path:
    """The path itself or the first one above it that is there: a file, where folders should be."""
    path = Path(path)
    return next(each for each in (path, *path.parents) if os.path.lexists(each))


def why_no_folder(path: str | Path) -> str:
    """Why there can be no folder of a path: a file is in its place, or a link that leads nowhere.

    To the system the latter, as of a disk that is not mounted, is a file that exists.
    """
    found = lowest_there(path)
    if found.is_symlink() and not found.exists():
        return f"{found} is a link to {os.readlink(found)}, which is not there"
    return os.strerror(errno.ENOTDIR)
