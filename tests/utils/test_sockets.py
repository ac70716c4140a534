"""Sockets of processes: where none can be made, and what says that one has gone."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Client, Listener
from pathlib import Path

import pytest
from helpers.tiny_run import exit_of

from tagclip.errors import ConfigError
from tagclip.utils.cli import run_tool
from tagclip.utils.sockets import check_sockets, is_lost_socket


def use(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that begins with this TMPDIR."""
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", None)


def test_a_place_without_sockets_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_sockets("they come")
    for name, reason in (("a" * 100, "AF_UNIX path too long"), ("none", "No such file or dir")):
        place = tmp_path / name
        if name != "none":
            place.mkdir()
        use(place, monkeypatch)
        with pytest.raises(ConfigError) as caught:
            check_sockets("they come", ", or go by foot")
        said = str(caught.value)
        assert said.startswith(f"TMPDIR: found {place}, where no socket can be made ({reason}")
        assert said.endswith(", by which they come; set TMPDIR=/tmp, or another, or go by foot")


def ask_nobody() -> None:
    with Listener() as listener:
        address = listener.address
    Client(address)


def open_nothing() -> None:
    Path("/nothing/there").read_text()


@pytest.mark.parametrize(("function", "expected"), [(ask_nobody, True), (open_nothing, False)])
def test_a_socket_that_has_gone_is_no_file_of_a_user(
    function: Callable[[], None], expected: bool
) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        function()
    assert is_lost_socket(caught.value) == expected


def test_a_socket_that_has_gone_is_one_line() -> None:
    line = exit_of(run_tool, ask_nobody)
    assert line.startswith("FileNotFoundError: TMPDIR: found the sockets gone by which processes ")
    assert line.endswith("and start again, a training with --resume") and "\n" not in line
