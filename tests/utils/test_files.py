"""Paths as a shell reads them; writes are complete or absent, whatever happens."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
from helpers.full_disk import largest_file

from tagclip.errors import ConfigError
from tagclip.utils.files import expand_path, folder_atomic, probe_path, write_atomic


@pytest.mark.parametrize(
    "path",
    [
        "~",
        "~/a/b",
        "~root/a",
        "$PLACE",
        "$PLACE/a",
        "a/${PLACE}b/$PLACE",
        "a~b/~",
        "/a/b.c",
        "",
        ".",
    ],
)
def test_paths_are_expanded_as_a_shell_does(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of somebody")
    monkeypatch.setenv("PLACE", "a place")
    shell = subprocess.run(["bash", "-c", f'x={path}; printf %s "$x"'], capture_output=True)
    assert expand_path(path) == shell.stdout.decode()
    if path:
        assert expand_path(Path(path)) == shell.stdout.decode()


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("~nobody-of-this-name/a", "no user 'nobody-of-this-name'"),
        ("a/$NOTHING/b", "no environment variable $NOTHING"),
        ("${NOTHING}", "no environment variable ${NOTHING}"),
    ],
)
def test_what_a_shell_would_not_find(
    path: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTHING", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: found {found}, expected one; ")):
        expand_path(path)
    # A file may be called so.
    write_atomic(tmp_path / path, b"")
    assert expand_path(path) == path


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"\x00\xff", b"\x00\xff"), (memoryview(b"abc"), b"abc"), ("Ä\n", b"\xc3\x84\n")],
)
def test_writes_bytes_and_text_into_a_new_folder(
    tmp_path: Path, content: bytes | memoryview | str, expected: bytes
) -> None:
    path = tmp_path / "a" / "b" / "file"
    assert write_atomic(str(path), content) == path
    assert path.read_bytes() == expected
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "file", b"old")
    with largest_file(10_000), pytest.raises(OSError, match="File too large"):
        write_atomic(path, bytes(20_000))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interruption_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_atomic(tmp_path / "file", b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_content_is_on_the_disk_before_the_name_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename that survives a power cut without its content would leave an empty file."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle: int) -> None:
        calls.append("fsync")
        assert os.fstat(handle).st_size == 3
        fsync(handle)

    def spy_replace(source: Path, target: Path) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_atomic(tmp_path / "file", b"new")
    assert calls == ["fsync", "rename"]


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError):
        write_atomic(tmp_path / "file" / "x", b"")


def test_a_path_is_probed_without_a_trace(tmp_path: Path) -> None:
    probe_path(tmp_path / "new" / "deep" / "file")
    (tmp_path / "file").touch()
    probe_path(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name in (".", "file/a", "link/a/b", "pipe", "/dev/stdout"):
        with pytest.raises(OSError):
            probe_path(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_found(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        probe_path(tmp_path / "locked" / "new" / "file")


def test_a_folder_is_replaced_as_a_whole_or_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "folder"
    for name in ("first", "second"):
        with folder_atomic(folder) as temporary:
            (temporary / name).touch()
            assert temporary.parent == folder.parent and temporary != folder
        assert [path.name for path in folder.iterdir()] == [name]
    with pytest.raises(ZeroDivisionError), folder_atomic(folder) as temporary:
        (temporary / "third").touch()
        raise ZeroDivisionError
    assert [path.name for path in folder.iterdir()] == ["second"]
    assert list(folder.parent.iterdir()) == [folder]
