"""Paths as users write them; writing files whole or not at all, and room for them."""

from __future__ import annotations

import errno
import os
import random
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tagclip.errors import ConfigError, OutputError
from tagclip.utils.in_the_way import lowest_there, why_no_folder
from tagclip.utils.run_lock import RunLock

__all__ = [
    "expand_path",
    "files_atomic",
    "folder_atomic",
    "is_address",
    "make_folder",
    "open_atomic",
    "path_atomic",
    "probe_folder",
    "probe_path",
    "remove_leftovers",
    "sync_folder",
    "temporary_folder",
    "temporary_place",
    "write_atomic",
]

_CHUNK = 1 << 24
# Bytes of a name within that of a temporary file.
_LONGEST_NAME = 200
# What writing into an open file fails with; the system then names no file.
_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# What `expand_path` would have replaced.
_UNKNOWN = re.compile(r"^~([^/]*)|\$(\w+)|\$\{(\w+)\}")
# Of a pathlib.Path one slash is left.
_ADDRESS = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/])")


def is_address(path: str | Path) -> bool:
    """Whether a path is an address, such as ``s3://bucket/a.png``, and no folder of this machine
    by its looks."""
    return bool(_ADDRESS.match(str(path)))


def expand_path(path: str | Path) -> str:
    """Replace ``~``, ``~USER``, ``$NAME`` and ``${NAME}`` in a path, as a shell does.

    Args:
        path: from a config, a command line or a caller.

    Raises:
        ConfigError: there is no such user or variable, or it is an address such as that of a
            bucket, and no file is really called so; or it is no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(f"path: found {path!r:.80}, expected a text or a pathlib.Path")
    expanded = os.path.expandvars(os.path.expanduser(path))
    # It would be taken for folders below this one, and results would be where nobody looks.
    if is_address(expanded) and not os.path.lexists(expanded):
        shown = _ADDRESS.sub(r"\1://", expanded)
        raise ConfigError(
            f"{shown}: found an address, expected a path of this machine; mount what is there, or "
            "copy files from it and to it, and name their path"
        )
    unknown = _UNKNOWN.search(expanded)
    if unknown and not os.path.lexists(expanded):
        user = unknown[0].startswith("~")
        what = f"no user {unknown[1]!r}" if user else f"no environment variable {unknown[0]}"
        raise ConfigError(
            f"{path}: found {what}, expected one; "
            f"{'mend the name' if user else 'set it'}, or write the path out"
        )
    return expanded


@contextmanager
def _naming(path: Path, own: Path) -> Iterator[None]:
    """Say which file cannot be written where the system names another one, or none.

    Args:
        path: that was asked for.
        own: temporary file or folder in its place; an error that names any other path, such as
            that of an input, is left as it is.

    Raises:
        OutputError: instead of an OSError of writing.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        is_own = (
            error.errno in _WRITING
            if error.filename is None
            else (
                isinstance(error.filename, (str, os.PathLike))
                and (Path(error.filename) == path or Path(error.filename).is_relative_to(own))
            )
        )
        if not is_own:
            raise
        raise OutputError(error.errno, error.strerror, str(path)) from error


def _remove(temporary: Path) -> None:
    """Remove a file that may not be there; a read-only file system refuses even that."""
    with suppress(OSError):
        temporary.unlink()


def make_folder(folder: str | Path) -> Path:
    """Create a folder and those above it, unless they are there.

    Returns:
        ``folder``.

    Raises:
        ConfigError: see `RunLock.check_held`.
        OutputError: it cannot be created.
    """
    folder = Path(folder)
    RunLock.check_held(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        reason, place = why_no_folder(folder), str(lowest_there(folder))
        raise OutputError(errno.ENOTDIR, reason, place) from error
    except OSError as error:
        raise OutputError(error.errno, error.strerror, str(folder)) from error
    return folder


def temporary_place() -> str:
    """Where temporary files go, for messages: Python finds none that cannot be written."""
    return os.environ.get("TMPDIR") or "/tmp"


@contextmanager
def temporary_folder(prefix: str = "tagclip-", parent: Path | None = None) -> Iterator[Path]:
    """Give a folder for temporary files, which is removed in the end.

    Args:
        prefix: of its name.
        parent: where to make it; None for the place of temporary files.

    Raises:
        OutputError: there is no place for it, or a file in it cannot be written.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix=prefix, dir=parent)
    except OSError as error:
        place = str(parent or temporary_place())
        raise OutputError(error.errno, error.strerror, place) from error
    with made as folder, _naming(Path(folder), Path(folder)):
        yield Path(folder)


def _cut(name: str) -> str:
    """The name with room for what a temporary one adds: file systems take 255 bytes."""
    return os.fsencode(name)[:_LONGEST_NAME].decode(errors="ignore")


@contextmanager
def _replacing(path: Path, suffix: str) -> Iterator[Path]:
    """Give a path for a temporary file beside ``path``, which in the end is flushed and renamed."""
    make_folder(path.parent)
    temporary = path.with_name(f".{_cut(path.name)}.{secrets.token_hex(4)}.tmp{suffix}")
    try:
        with _naming(path, temporary):
            yield temporary
            if temporary.exists():
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


@contextmanager
def path_atomic(path: str | Path) -> Iterator[Path]:
    """Give the path of a temporary file beside ``path``, for what opens files by their name.

    As `open_atomic`, but the block makes the file, and closes it, or makes none. A kill may leave
    it behind as ``.NAME.RANDOM.tmp`` with the suffix of ``path``.

    Args:
        path: the file; its folder is created.

    Raises:
        OutputError: the folder or file cannot be written, or the disk is full.
    """
    with _replacing(Path(path), Path(path).suffix) as temporary:
        yield temporary


@contextmanager
def open_atomic(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; in the end flush it to the disk, then rename it.

    Whatever happens, also a kill or a power cut, ``path`` holds either its old content or all of
    the new one. A failure removes the temporary file; a kill may leave it behind, as
    ``.NAME.RANDOM.tmp``. The file gets the permissions of the umask, like any other.

    Args:
        path: the file; its folder is created.

    Raises:
        OutputError: the folder or file cannot be written, or the disk is full.
    """
    with _replacing(Path(path), "") as temporary, temporary.open("xb") as file:
        yield file


@contextmanager
def folder_atomic(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; in the end it takes that name, with all in it.

    A failure removes the temporary folder; a kill may leave it behind, as ``.NAME.RANDOM.tmp``. A
    folder that is there already is replaced: of a kill between two renamings its content remains
    under such a name.

    Args:
        path: the folder; those above it are created.

    Raises:
        OutputError: it cannot be written, or the disk is full.
    """
    path = Path(path).absolute()
    make_folder(path.parent)
    names = (f".{_cut(path.name)}.{secrets.token_hex(4)}.tmp" for _ in range(2))
    temporary, old = map(path.with_name, names)
    with _naming(path, temporary):
        temporary.mkdir()
        try:
            yield temporary
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists():
                os.replace(old, path)
            raise
    shutil.rmtree(old, ignore_errors=True)
    sync_folder(path.parent)


@contextmanager
def files_atomic(folder: str | Path) -> Iterator[Path]:
    """Give a temporary folder within a folder; in the end its files take their places there.

    They replace those of the same names and paths; others stay. A failure before changes nothing; a
    kill may leave the temporary folder behind, as ``.files.RANDOM.tmp`` (`remove_leftovers`).

    Args:
        folder: is created.

    Raises:
        OutputError: a file cannot be written, or the disk is full; it names the place in the end.
    """
    folder = make_folder(folder)
    temporary = folder / f".files.{secrets.token_hex(4)}.tmp"
    try:
        with _naming(folder, temporary):
            temporary.mkdir()
            yield temporary
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            places = [folder / path.relative_to(temporary) for path in files]
            # Before the first takes its place.
            for place in places:
                make_folder(place.parent)
                if place.is_dir():
                    number = errno.EISDIR
                    raise OutputError(number, os.strerror(number), str(place))
            for path, place in zip(files, places, strict=True):
                os.replace(path, place)
    except OutputError as error:
        if error.filename is None or not Path(error.filename).is_relative_to(temporary):
            raise
        place = folder / Path(error.filename).relative_to(temporary)
        raise OutputError(error.errno, error.strerror, str(place)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_atomic(path: str | Path, content: bytes | memoryview | str) -> Path:
    """Write a file whole or not at all, see `open_atomic`.

    Args:
        path: the file; its folder is created.
        content: text becomes UTF-8.

    Returns:
        ``path``.

    Raises:
        OutputError: the folder or file cannot be written, or the disk is full.
    """
    with open_atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return Path(path)


def sync_folder(folder: str | Path) -> None:
    """Flush the names in a folder to the disk: what was renamed there survives a power cut.

    Args:
        folder: a file system that cannot flush it keeps names as well as it can.

    Raises:
        OSError: the disk fails.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def probe_folder(folder: str | Path, size: int) -> None:
    """Write a file of ``size`` bytes and remove it: whether a later one finds room and rights.

    Args:
        folder: is created.
        size: bytes. They are random ones, which no file system compresses.

    Raises:
        OutputError: the folder cannot be written, or the disk has no such room.
    """
    folder = make_folder(folder)
    temporary = folder / f".probe.{secrets.token_hex(4)}.tmp"
    generator = random.Random(0)
    try:
        with _naming(folder, temporary), temporary.open("xb") as file:
            for start in range(0, size, _CHUNK):
                file.write(generator.randbytes(min(_CHUNK, size - start)))
            file.flush()
            os.fsync(file.fileno())
    finally:
        _remove(temporary)


def probe_path(path: str | Path) -> None:
    """Write a byte into the folder of a file that is still to come and remove it, or into the
    first folder above that is there: nothing is created.

    Raises:
        OSError: there is no such folder, it cannot be written, or the path is a folder itself, or
            a device, which a file would replace.
    """
    path = Path(path).absolute()
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # Of /dev itself the files, too: /dev/stdout is a link to one if output goes there.
    if path.parent == Path("/dev") or (path.exists() and not path.is_file()):
        raise OSError(errno.EINVAL, "is a device or a pipe, not a file", str(path))
    folder = lowest_there(path.parent)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, why_no_folder(folder), str(folder))
    probe_folder(folder, 1)


def remove_leftovers(folder: str | Path, name: str) -> None:
    """Remove the temporary files and folders that killed processes left in a folder.

    Args:
        folder: nobody else may be writing these there.
        name: glob pattern of the names that `write_atomic` or `path_atomic` was called with, or of
            ``probe``.
    """
    temporary = f".{_cut(name)}.{'[0-9a-f]' * 8}.tmp"
    for pattern in {temporary, temporary + Path(name).suffix}:
        for path in Path(folder).glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
