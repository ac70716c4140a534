"""Writing files so that they are either complete or absent."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

__all__ = ["write_atomic"]


def write_atomic(path: str | Path, content: bytes | memoryview | str) -> Path:
    """Write to a temporary file beside ``path``, flush it to the disk, then rename it.

    Whatever happens, also a kill or a power cut, ``path`` holds either its old content or all of
    the new one. A failure removes the temporary file; a kill may leave it behind, as
    ``.NAME.RANDOM.tmp``. The file gets the permissions of the umask, like any other.

    Args:
        path: the file; its folder is created.
        content: text becomes UTF-8.

    Returns:
        ``path``.

    Raises:
        OSError: the folder or file cannot be written, or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
