"""Processes of a pool end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

from tagclip.utils.parent import end_with_parent

MAIN = """
import multiprocessing, os, sys, threading
from concurrent.futures import ProcessPoolExecutor
from tagclip.utils.parent import end_with_parent

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    pool = ProcessPoolExecutor(2, context, initializer=end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    threading.Event().wait()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_killed_process_leaves_none_behind(method: str, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, str(script), method], stdout=subprocess.PIPE, env=environment, text=True
    )
    assert int(process.stdout.readline()) != process.pid
    process.send_signal(signal.SIGKILL)
    # The pipe ends only when the last of the processes that inherited it has gone.
    assert process.communicate(timeout=60)[0] == ""


def test_a_process_works_on_while_its_parent_lives() -> None:
    with ProcessPoolExecutor(1, initializer=end_with_parent) as pool:
        assert list(pool.map(abs, [-1, -2, -3])) == [1, 2, 3]
