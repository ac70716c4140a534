"""Paths as a shell reads them; writes are complete or absent, whatever happens."""

from __future__ import annotations

import errno
import os
import pickle
import re
import stat
import subprocess
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from helpers.full_disk import largest_file, read_only

from tagclip.errors import ConfigError, OutputError
from tagclip.utils.files import (
    expand_path,
    files_atomic,
    folder_atomic,
    make_folder,
    path_atomic,
    probe_folder,
    probe_path,
    temporary_folder,
    write_atomic,
)


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
    "path",
    ["s3://bucket/run", "https://a.b/model.pth", "file:///data/a.png", "hf://x/y", "S3a://b/c"],
)
def test_an_address_is_no_folder_of_this_name(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results would be in ./s3:/bucket/run, of a machine that may be gone when they are wanted."""
    monkeypatch.chdir(tmp_path)
    shown = re.sub(":/+", "://", path)
    for given in (path, Path(path)):
        with pytest.raises(ConfigError, match=re.escape(f"{shown}: found an address, expected a")):
            expand_path(given)
    write_atomic(tmp_path / path, b"")
    assert expand_path(Path(path)) == str(Path(path))


@pytest.mark.parametrize("path", ["C:/data", "hf-hub:a/b", "a:b", "./s3://x", "12:/3", "hf-hub:"])
def test_a_colon_makes_no_address(path: str) -> None:
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


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    file = write_atomic(tmp_path / "file", b"")
    (tmp_path / "link").symlink_to("nowhere")
    for folder in (file, file / "a", file / "a" / "b", tmp_path / "link", tmp_path / "link" / "a"):
        named = tmp_path / folder.relative_to(tmp_path).parts[0]
        with pytest.raises(OutputError) as caught:
            make_folder(folder)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOTDIR, str(named))


def write_path(path: Path) -> None:
    with path_atomic(path) as temporary:
        temporary.write_bytes(bytes(20_000))


def write_folder(path: Path) -> None:
    with folder_atomic(path) as temporary:
        (temporary / "inner").write_bytes(bytes(20_000))


WRITERS = {
    "file": lambda path: write_atomic(path, bytes(20_000)),
    "path": write_path,
    "folder": write_folder,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["full", "read-only", "in a file"])
def test_an_error_names_what_was_asked_for(tmp_path: Path, writer: str, kind: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    path, reason, remedy = place / "new", "Permission denied", "choose a place that can be written"
    if kind == "in a file":
        (place / "file").touch()
        path, reason = place / "file" / "new", "Not a directory"
    if kind == "full":
        reason, remedy = "File too large", "free space or choose another place"
    broken = {"full": largest_file(10_000), "read-only": read_only(place)}.get(kind, nullcontext())
    with broken, pytest.raises(OutputError) as caught:
        WRITERS[writer](path)
    # A file in the place of a folder is found where the folder is made.
    named = path.parent if kind == "in a file" else path
    assert str(caught.value).startswith(f"{named}: cannot be written ({reason}); {remedy}")
    assert (caught.value.filename, caught.value.strerror) == (str(named), reason)
    assert caught.value.errno in (errno.EFBIG, errno.EACCES, errno.ENOTDIR)
    assert os.listdir(place) == ["file"] * (kind == "in a file")


@pytest.mark.parametrize("writer", [path_atomic, folder_atomic])
def test_an_error_of_an_input_stays_what_it_is(tmp_path: Path, writer: Any) -> None:
    with pytest.raises(FileNotFoundError) as caught, writer(tmp_path / "out"):
        (tmp_path / "in").read_bytes()
    assert caught.value.filename == str(tmp_path / "in")
    with pytest.raises(OSError, match="no image") as caught, writer(tmp_path / "out"):
        raise OSError("no image")
    assert type(caught.value) is OSError and not list(tmp_path.iterdir())


def test_files_take_their_places_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "b" / "inner").mkdir(parents=True)

    def write(*names: str) -> None:
        with files_atomic(tmp_path) as waiting:
            for name in names:
                write_atomic(waiting / name, "new")

    with pytest.raises(OutputError, match=rf"^{tmp_path}/b/inner: cannot be written \(Is a direct"):
        write("a", "b/inner", "c")
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b", "inner"}
    assert (tmp_path / "a").read_text() == "old"
    write("a", "b/other", "c")
    found = {path.name: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"a": "new", "other": "new", "c": "new"}


def test_an_output_error_reaches_another_process() -> None:
    error = pickle.loads(pickle.dumps(OutputError(errno.ENOSPC, "No space left", "/a/b")))
    assert str(error) == "/a/b: cannot be written (No space left); " + (
        "free space or choose another place"
    )
    # torch's loader hands on a text alone.
    assert str(OutputError("a text")) == "a text"


def test_a_block_that_makes_no_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.avi", b"old")
    with path_atomic(path) as temporary:
        assert temporary.suffix == ".avi" and temporary.parent == path.parent
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.avi"]


def test_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
    with pytest.raises(OutputError) as caught, temporary_folder() as folder, largest_file(10):
        (folder / "x").write_bytes(bytes(100))
    assert str(caught.value).startswith(f"{folder}: cannot be written (File too large)")
    monkeypatch.setattr(tempfile, "tempdir", None)
    with largest_file(0), pytest.raises(OutputError) as caught, temporary_folder():
        pass
    assert str(caught.value).startswith(f"{tmp_path}: cannot be written (No usable temporary dir")
    # What is no error of a disk is not called one.
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(OSError, match="Address already in use") as caught, temporary_folder():
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    assert not isinstance(caught.value, OutputError) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", [make_folder, lambda path: probe_folder(path, 5)])
def test_a_folder_that_cannot_be_made(tmp_path: Path, function: Any) -> None:
    with read_only(tmp_path), pytest.raises(OutputError) as caught:
        function(tmp_path / "a" / "b")
    assert caught.value.filename == str(tmp_path / "a" / "b")


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
