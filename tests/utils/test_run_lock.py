"""tagclip/utils/run_lock.py: one process at a time, and none that is dead."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path

import pytest
from helpers.locks import at_work

from tagclip.errors import ConfigError
from tagclip.utils.run_lock import RunLock


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
    assert (folder / ".lock").read_text() == ""
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


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"), RunLock(tmp_path / "file" / "x"):
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
