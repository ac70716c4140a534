"""Where files of visitors lie: a temporary folder, which no server leaves behind for good."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tagclip.errors import ConfigError
from tagclip.utils.files import temporary_folder
from tagclip.utils.run_lock import LOCK_NAME, RunLock

__all__ = ["page_folder"]

_PREFIX = "tagclip-page-"


@contextmanager
def page_folder() -> Iterator[Path]:
    """Give a folder, which goes in the end; those of killed servers, which kept theirs, go first.

    Raises:
        OutputError: there is no place for it, or a file in it cannot be written.
    """
    # The lock is beside the files: what lies among them may be asked for.
    with temporary_folder(_PREFIX) as folder, RunLock(folder):
        _remove_of_killed(folder.parent)
        files = folder / "files"
        files.mkdir()
        yield files


def _remove_of_killed(place: Path) -> None:
    for folder in place.glob(f"{_PREFIX}*"):
        # Without a lock a server is about to take it.
        if _is_own(folder) and _is_own(folder / LOCK_NAME):
            with suppress(ConfigError), RunLock(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_own(path: Path) -> bool:
    """Whether this user has made a file or folder: others may put links where all may write."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not stat.S_ISLNK(status.st_mode)
