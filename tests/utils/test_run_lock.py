"""tagclip/utils/run_lock.py: one process at a time, and none that is dead."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.full_disk import read_only
from helpers.locks import at_work
from helpers.paths import REPOSITORY

from tagclip.errors import ConfigError, OutputError
from tagclip.utils.cli import check_output
from tagclip.utils.files import (
    files_atomic,
    folder_atomic,
    make_folder,
    path_atomic,
    write_atomic,
)
from tagclip.utils.run_lock import RunLock, in_turn


def test_a_second_one_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    with RunLock(folder), pytest.raises(ConfigError) as caught, RunLock(folder):
        raise AssertionError
    expected = (
        f"{folder}: process {os.getpid()} on {socket.gethostname()} is at work in this folder"
    )
    assert str(caught.value).startswith(expected)
    with RunLock(folder):
        assert (folder / ".lock").read_text() == f"{socket.gethostname()} {os.getpid()}"
        assert RunLock.holder(folder) == "", "this process is no other"
        assert RunLock.is_held(folder)
    assert not folder.parent.exists() and not RunLock.is_held(folder)
    folder.mkdir(parents=True)
    with RunLock(folder):
        pass
    assert folder.is_dir() and not list(folder.iterdir())
    assert RunLock.holder(folder) == RunLock.holder(tmp_path / "missing") == ""


def test_a_killed_process_keeps_nothing(tmp_path: Path) -> None:
    with at_work(tmp_path) as process:
        with pytest.raises(ConfigError, match=f"process {process.pid} on"), RunLock(tmp_path):
            raise AssertionError
        assert RunLock.holder(tmp_path) == f"process {process.pid} on {socket.gethostname()}"
        process.kill()
        process.wait()
        # It has left its name.
        assert str(process.pid) in (tmp_path / ".lock").read_text()
        assert RunLock.holder(tmp_path) == ""
    with RunLock(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_the_lock_of_another_user_locks_like_ones_own(tmp_path: Path) -> None:
    """Nobody may write the file of another user, which says who is there all the same."""
    lock = tmp_path / ".lock"
    with (
        at_work(tmp_path) as process,
        read_only(lock),
        pytest.raises(ConfigError, match=f"process {process.pid} on .* is at work"),
    ):
        RunLock(tmp_path).__enter__()
    lock.write_text("elsewhere 1")
    with read_only(lock):
        with RunLock(tmp_path):
            assert lock.read_text() == f"{socket.gethostname()} {os.getpid()}"
        assert not lock.exists()
        # For `read_only`, which gives the rights back.
        lock.touch()


def test_a_lock_can_be_read_by_all_who_share_the_folder(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        with RunLock(tmp_path), in_turn(tmp_path / "turn.lock"):
            modes = [(tmp_path / name).stat().st_mode & 0o777 for name in (".lock", "turn.lock")]
    finally:
        os.umask(mask)
    assert modes == [0o644, 0o644]


def test_in_turn_at_a_file_of_another_user(tmp_path: Path) -> None:
    path = tmp_path / "turn.lock"
    path.touch()
    with read_only(path), in_turn(path):
        code = f"import fcntl; fcntl.flock(open({str(path)!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "BlockingIOError" in other.stderr
    with read_only(tmp_path), pytest.raises(PermissionError), in_turn(tmp_path / "new.lock"):
        raise AssertionError


def test_a_link_that_leads_nowhere_is_called_so(tmp_path: Path) -> None:
    """To the system it is a file that exists, and to a user a disk that is not mounted."""
    link, gone = tmp_path / "link", tmp_path / "gone"
    link.symlink_to(gone)
    said = f"{link} is a link to {gone}, which is not there"
    for folder in (link, link / "run"):
        with pytest.raises(ConfigError) as caught:
            RunLock(folder, "--output").__enter__()
        assert str(caught.value).startswith(
            f"--output {folder}: found no folder to write to ({said}"
        )
        with pytest.raises(OutputError) as made:
            make_folder(folder)
        assert str(made.value).startswith(f"{link}: cannot be written ({said}")
        with pytest.raises(ConfigError) as checked:
            check_output("--output", folder, is_folder=True)
        assert str(checked.value).startswith(f"--output {folder}: cannot be written ({said}")
    gone.mkdir()
    with RunLock(link / "run"):
        assert (gone / "run" / ".lock").is_file()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, found in (
        (tmp_path / "file" / "x", "Not a directory"),
        (Path("a\0"), "embedded null byte"),
    ):
        with pytest.raises(ConfigError) as caught, RunLock(folder, "--output"):
            raise AssertionError
        assert str(caught.value).startswith("--output ")
        assert f": found no folder to write to ({found}" in str(caught.value)


def test_a_folder_that_has_gone_is_not_made_anew(tmp_path: Path) -> None:
    """What is written there would be of nobody, or of the next run."""
    folder, moved = tmp_path / "out", tmp_path / "moved"
    with RunLock(folder, "OUTPUT_DIR"):
        write_atomic(folder / "sub" / "a.txt", "a")
        folder.rename(moved)
        for write in (
            lambda: write_atomic(folder / "a.txt", "a"),
            lambda: make_folder(folder / "sub" / "other"),
            lambda: folder_atomic(folder / "b").__enter__(),
            lambda: files_atomic(folder).__enter__(),
            lambda: path_atomic(folder / "c.mp4").__enter__(),
        ):
            with pytest.raises(ConfigError) as caught:
                write()
            assert str(caught.value) == (
                f"OUTPUT_DIR {folder}: found it moved or removed, expected it to stay until this "
                "ends; start again, a training with --resume in the folder that has its checkpoints"
            )
        # Elsewhere it may write.
        write_atomic(tmp_path / "other" / "a.txt", "a")
    assert not folder.exists() and (moved / "sub" / "a.txt").read_text() == "a"


def test_a_folder_that_is_another_run_s_by_now_is_left_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with RunLock(folder):
        folder.rename(tmp_path / "moved")
        with at_work(folder) as process, pytest.raises(ConfigError) as caught:
            write_atomic(folder / "a.txt", "a")
        assert f"now of process {process.pid} on " in str(caught.value)
        # It has ended.
        folder.mkdir()
        with pytest.raises(ConfigError, match="found it moved or removed, expected"):
            write_atomic(folder / "a.txt", "a")
        (folder / ".lock").write_text("other 1")
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_disk_that_fails_is_told_by_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training survives a disk that fails for a while, and no run has its folder meanwhile."""
    stat = os.stat

    def failing(path: object, *args: object, **options: object) -> os.stat_result:
        if isinstance(path, Path) and path.is_relative_to(tmp_path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return stat(path, *args, **options)

    with RunLock(tmp_path):
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", failing)
            RunLock.check_held(tmp_path)
        (tmp_path / ".lock").unlink()
        with read_only(tmp_path), pytest.raises(OutputError):
            write_atomic(tmp_path / "a.txt", "a")
        write_atomic(tmp_path / "a.txt", "a")
        with pytest.raises(ConfigError, match="is at work in this folder"), RunLock(tmp_path):
            raise AssertionError


def test_a_lock_whose_file_was_removed_is_taken_again(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / ".lock").unlink()
        write_atomic(tmp_path / "a.txt", "a")
        assert (tmp_path / ".lock").read_text() == f"{socket.gethostname()} {os.getpid()}"
        with pytest.raises(ConfigError, match="is at work in this folder"), RunLock(tmp_path):
            raise AssertionError
        (tmp_path / ".lock").unlink()
        with at_work(tmp_path) as process, pytest.raises(ConfigError) as caught:
            write_atomic(tmp_path / "b.txt", "b")
        assert f"process {process.pid} on " in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_lock_of_a_file_leaves_its_folder_to_others(tmp_path: Path) -> None:
    with RunLock(tmp_path, file="a.json"), RunLock(tmp_path), RunLock(tmp_path, file="b.json"):
        expected = f"--json {tmp_path / 'a.json'}: process {os.getpid()} on .*in this file"
        again = RunLock(tmp_path, "--json", "a.json")
        with pytest.raises(ConfigError, match=expected), again:
            raise AssertionError
    assert not list(tmp_path.iterdir())
    names = "n" * 255, "n" * 254 + "m", "é" * 127 + "n"
    for name in names:
        with RunLock(tmp_path, file=name):
            assert len(list(tmp_path.iterdir())) == 1


FORKS = """
import os, signal, sys
from pathlib import Path
from tagclip.utils.cli import check_output
from tagclip.utils.run_lock import RunLock, in_turn
with RunLock(Path(sys.argv[1])):
    if os.fork():
        os.kill(os.getpid(), signal.SIGKILL)
    print("alive", flush=True)
    sys.stdin.read()
print("gone", flush=True)
"""


def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    """As a loader process that lives on for seconds when its training was killed."""
    command = [sys.executable, "-c", FORKS, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, **pipes) as process:
        assert process.stdout.readline() == b"alive\n"
        assert process.wait() == -signal.SIGKILL
        with RunLock(tmp_path):
            # What the child leaves is not its own.
            process.stdin.close()
            assert process.stdout.readline() == b"gone\n"
            assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_who_opened_the_file_that_is_then_removed_locks_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, first = fcntl.flock, RunLock(tmp_path)
    first.__enter__()

    def leave_before(handle: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        first.__exit__(None, None, None)
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", leave_before)
    with RunLock(tmp_path):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(ConfigError, match="at work"), RunLock(tmp_path):
            raise AssertionError


def test_where_there_are_no_locks_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunLock(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path}: this file system has no locks (No locks available)")
