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


LAUNCHED = """
import subprocess, sys
child = "import time; from tagclip.utils.parent import end_with_parent as end; "
child += f"end(of_torchrun={sys.argv[1]}); print('ready', flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child]).wait()
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="of Linux")
def test_a_process_of_torchrun_ends_with_it() -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHED, "True"],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    # As above.
    assert process.communicate(timeout=60)[0] == ""


def test_a_process_works_on_while_its_parent_lives() -> None:
    with ProcessPoolExecutor(1, initializer=end_with_parent) as pool:
        assert list(pool.map(abs, [-1, -2, -3])) == [1, 2, 3]


STARTER = """
import sys
from pathlib import Path
from tagclip.utils.cli import run_tool
from tagclip.tools.minibench import run_table

def main(folder):
    def job(key):
        words = [str(folder / "child.py"), "--output", str(folder), "--one", key]
        run_table.run_script(words, folder / f"{key}.log")
    for _ in run_table.run_scripts(job, ["a", "b", "c"], 2):
        print("done", flush=True)

run_tool(main, Path(sys.argv[1]))
"""
CHILD = """
import signal, sys, threading
from pathlib import Path
from tagclip.tools.minibench import run_table

folder, key = Path(sys.argv[2]), sys.argv[4]
def save(*_):
    (folder / f"{key}.saved").touch()
    sys.exit(0)
def job():
    signal.signal(signal.SIGTERM, save)
    alive = (folder / "alive").open("w")
    print(key, file=alive, flush=True)
    threading.Event().wait()
run_table.be_script(job)
"""


@pytest.mark.parametrize(
    ("number", "saved"),
    [(signal.SIGKILL, []), (signal.SIGTERM, ["a", "b"]), (signal.SIGINT, ["a", "b"])],
)
def test_runs_of_a_table_end_with_it(tmp_path: Path, number: int, saved: list[str]) -> None:
    """After SIGKILL at once, else they save; none begins that has not."""
    (tmp_path / "child.py").write_text(CHILD)
    os.mkfifo(tmp_path / "alive")
    code = f"import signal; signal.signal(2, signal.default_int_handler){STARTER}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        text=True,
    )
    with (tmp_path / "alive").open() as alive:
        assert {alive.readline(), alive.readline()} == {"a\n", "b\n"}
        process.send_signal(number)
        # It ends with the last process that has it open.
        assert alive.read() == ""
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert sorted(path.stem for path in tmp_path.glob("*.saved")) == saved
    assert not (tmp_path / "c.log").exists()
