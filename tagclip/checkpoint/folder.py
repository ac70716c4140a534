"""The folder of the checkpoints: whether it has room, what is written there, what kills left."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from tagclip.checkpoint.reading import LAST, loadable_beside
from tagclip.errors import CheckpointError
from tagclip.utils.files import probe_folder, remove_leftovers, sync_folder, write_atomic
from tagclip.utils.run_lock import RunLock

__all__ = [
    "advise_other",
    "begin_run",
    "clean_folder",
    "has_begun_anew",
    "last_checkpoint",
    "probe_room",
    "serialised",
    "write_durably",
]

# What a training needs to continue.
_STATE = ("optimizer", "trainer", "iteration")
# In last_checkpoint, from the start of a run beside checkpoints of an earlier one to its own first.
_NONE_YET = "(none of the run that began here last)"


def serialised(content: Any) -> memoryview:
    """Return the bytes that torch.save writes; to a file, it would hide a full disk."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def write_durably(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file as a whole; when this returns, a power cut does not take it back.

    Raises:
        CheckpointError: the folder cannot be written, or the disk is full.
    """
    try:
        write_atomic(path, content)
        # Else last_checkpoint could outlive the name of the checkpoint that it points to.
        sync_folder(path.parent)
    except OSError as error:
        before, then = "earlier checkpoints are intact", "continue with --resume"
        if not any(path.parent.glob("*.pth")):
            before, then = "there is no earlier checkpoint", "start again"
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror}); {before}: free space or make the "
            f"folder writable, then {then}"
        ) from error


def clean_folder(folder: Path) -> None:
    """Remove the temporary files of runs that were killed while they saved a checkpoint.

    Raises:
        ConfigError: see `RunLock.check_held`; the files may be those of a run at work.
    """
    RunLock.check_held(folder)
    for name in ("*.pth", LAST, "probe"):
        remove_leftovers(folder, name)


def probe_room(folder: Path, size: int) -> None:
    """Find out before a training whether its checkpoints can be written.

    Args:
        folder: OUTPUT_DIR.
        size: bytes of a checkpoint.

    Raises:
        CheckpointError: they cannot.
    """
    try:
        clean_folder(folder)
        probe_folder(folder, size)
    except OSError as error:
        raise CheckpointError(
            f"OUTPUT_DIR {folder}: found no room for a checkpoint ({error.strerror}), expected a "
            f"writable folder with {size / 1e6:.1f} MB free; free space or name another folder"
        ) from error


def begin_run(folder: Path) -> bool:
    """Note that a new run begins in a folder, whatever checkpoints an earlier one has left.

    Else ``--resume`` would go on with that one, if the new run is killed before its first.

    Returns:
        Whether there are any.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    tag = folder / LAST
    is_used = os.path.lexists(tag) or bool(loadable_beside(tag, _STATE))
    if is_used:
        write_durably(tag, _NONE_YET)
    return is_used


def has_begun_anew(folder: str | Path) -> bool:
    """Whether the run that began last in a folder has no checkpoint yet, see `begin_run`."""
    try:
        return (Path(folder) / LAST).read_text(encoding="utf-8").strip() == _NONE_YET
    except (OSError, UnicodeDecodeError):
        return False


def last_checkpoint(folder: str | Path) -> str:
    """Path of the checkpoint that a training in a folder continues from; "" if there is none.

    The file ``last_checkpoint`` names it, or says that the run that began last has none. Where that
    is missing, as a process leaves it that is killed right after its first checkpoint, it is the
    complete one of a training that has the most iterations.

    Raises:
        CheckpointError: ``last_checkpoint`` names no file beside it.
    """
    tag = Path(folder) / LAST
    try:
        name = tag.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        newest = loadable_beside(tag, _STATE)
        return str(tag.with_name(newest)) if newest else ""
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{tag}: cannot be read ({type(error).__name__}), expected the name of a "
            f"checkpoint{advise_other(tag)}"
        ) from error
    if name == _NONE_YET:
        return ""
    path = tag.with_name(name) if name and Path(name).name == name else tag
    # A name may be too long for any file, or hold a zero byte.
    if path == tag or not os.path.isfile(path):
        raise CheckpointError(
            f"{tag}: found {name!r}, expected the name of a checkpoint beside it{advise_other(tag)}"
        )
    return str(path)


def advise_other(tag: Path) -> str:
    """Which checkpoint ``last_checkpoint`` could name instead, as the end of a message."""
    other = loadable_beside(tag)
    return f"; write the name of one into it, such as {other}" if other else ""
