"""Another process that is at work in a folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.paths import REPOSITORY

_CODE = """
import sys
from pathlib import Path
from tagclip.utils.run_lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def at_work(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the lock of a folder, until it is killed or the block ends."""
    command = [sys.executable, "-c", _CODE, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, **pipes) as process:
        assert process.stdout.readline() == b"held\n"
        # Its end closes the pipe that it waits for.
        yield process
