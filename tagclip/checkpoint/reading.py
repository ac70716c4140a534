"""Reading checkpoint files: never executes what they hold, names what is wrong with them."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from tagclip.checkpoint.hub import download, is_hub_name
from tagclip.checkpoint.pretrained_folder import (
    WEIGHTS,
    check_sha256,
    is_of_folder,
    read_description,
    read_metadata,
)
from tagclip.errors import CheckpointError
from tagclip.utils.state_dict import check_filled, check_finite, unwrap
from tagclip.utils.text import did_you_mean, error_text, one_line
from tagclip.utils.torch_file import ForeignPickleError, load_torch_file
from tagclip.utils.untrusted import UnsafeFileError, check_content, load_json

__all__ = ["EARLIER", "LAST", "find_weights", "loadable_beside", "read_checkpoint", "read_dict"]

logger = logging.getLogger(__name__)

# In the folder of a run, names the checkpoint that it continues from.
LAST = "last_checkpoint"
# The names of a run's checkpoints begin so.
_PREFIX = "model_"
_SUFFIXES = (".pth", ".safetensors")
EARLIER = (
    "take an earlier checkpoint of the run: as MODEL.WEIGHTS or, with --resume, by its name in the "
    f"file {LAST}"
)
"""What to do where a checkpoint of a run is of no use, for the end of a message."""


def find_weights(weights: str | Path, **options: Any) -> Path:
    """Return the file of tensors that MODEL.WEIGHTS or ``--weights`` means.

    What is here goes first: a file, or a folder that ``tagclip publish`` wrote. Otherwise it may be
    a model of the hub by the rule of `is_hub_name`, which is brought into the cache.

    Args:
        weights: path of a file or folder, or ``ORGANISATION/NAME``, with ``@REVISION`` if need be.
        options: of `download`.

    Returns:
        A path ending in ``.pth`` is not looked for; `read_checkpoint` says whether it is there.

    Raises:
        CheckpointError: it is none of these, or the folder or model is damaged, not within reach,
            or of another library.
    """
    path = Path(weights)
    # os.path says no of names that no file can have, where pathlib raises OSError.
    if os.path.isdir(path):
        read_description(path)
        return path / WEIGHTS
    if os.path.lexists(path) or path.suffix in _SUFFIXES:
        return path
    if is_hub_name(str(weights)):
        return download(str(weights), **options)
    beside = os.listdir(path.parent) if os.path.isdir(path.parent) else ()
    raise CheckpointError(
        f"MODEL.WEIGHTS: found {str(weights)!r}, which is not here, expected a .pth or "
        ".safetensors file, a folder that tagclip publish wrote, or a model of the hub as "
        "ORGANISATION/NAME"
        f"{did_you_mean(path.name, beside) or '; check the path'}"
    )


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without executing anything that it may hold.

    Args:
        path: see `find_weights`: a ``.pth`` file of tensors, numbers and text, a ``.safetensors``
            file, a folder or a model of the hub. What others put around a state dict (`unwrap`) is
            left out, which is logged.

    Returns:
        ``model``: name -> CPU tensor, and whatever else was saved.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, no checkpoint, or a weight in it is
            not finite, or, in a ``.safetensors`` file, a matrix all zero. If it is one of a run and
            another one of that can be read, the message names it.
    """
    if not str(path):
        raise CheckpointError(
            "MODEL.WEIGHTS is empty, expected a .pth or .safetensors file; name a checkpoint"
        )
    path = find_weights(path)
    if path.suffix not in _SUFFIXES:
        raise CheckpointError(
            f"{path}: found a {path.suffix or 'file without suffix'}, expected .pth or "
            ".safetensors; other formats may execute code and are not read"
        )
    try:
        metadata = read_metadata(path.parent) if is_of_folder(path) else None
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such checkpoint; check MODEL.WEIGHTS or, with --resume, the file "
                "last_checkpoint"
            )
        checkpoint, wrappers = _read(path)
        if metadata is not None:
            check_sha256(path, read_description(path.parent)["weights_sha256"])
            checkpoint["tagclip"] = metadata
    except CheckpointError as error:
        is_of_run = path.name.startswith(_PREFIX) and path.with_name(LAST).is_file()
        other = loadable_beside(path) if is_of_run else None
        advice = f"; {other} beside it can be read" if other else ""
        raise CheckpointError(f"{error}{advice}") from error.__cause__
    if wrappers not in ([], ["['model']"]):
        logger.info("%s: unwrapped %s", path, ", ".join(wrappers))
    return checkpoint


def loadable_beside(path: Path, parts: Iterable[str] = ()) -> str | None:
    """Return the name of another checkpoint of ours beside a file, the latest that can be read.

    It is the one of the most iterations, by what the files hold: clocks are set back, and copies
    get new times. Those that hold no iteration come last.

    Args:
        path: the file.
        parts: what the checkpoint has to hold, such as ``optimizer``.
    """
    wanted = {"tagclip", *parts}
    others = [file for file in path.parent.glob("*.pth") if file != path and file.is_file()]
    for file in sorted(others, key=lambda file: (_iteration(file), file.name), reverse=True):
        try:
            is_wanted = wanted <= _read(file)[0].keys()
        except CheckpointError:
            continue
        if is_wanted:
            return file.name
    return None


def _iteration(path: Path) -> int:
    """The iteration that a checkpoint was saved at, without reading its tensors; -1 if unknown."""
    try:
        found = load_torch_file(path, tensors=False)["iteration"]
    # A damaged file may end in any error of zip, pickle or torch.
    except Exception:
        return -1
    return found if type(found) is int else -1


def read_dict(path: Path) -> dict[str, Any]:
    """Read a file that holds a dict, whatever its keys, without executing anything.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    try:
        checkpoint = _parse(path)
        check_content(checkpoint, path.stat().st_size)
    # A damaged file may end in any error of zip, pickle, safetensors or torch.
    except Exception as error:
        raise CheckpointError(f"{path}: {_describe(path, error)}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"{path}: found a {type(checkpoint).__name__}, expected a dict of tensors"
        )
    return checkpoint


def _read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The checkpoint, and what was unwrapped."""
    content = read_dict(path)
    for name in content:
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: found the key {name!r:.40}, expected names as keys")
    state, wrappers = unwrap(content, path)
    check_finite(state, path, EARLIER)
    # The archives of torch.save have checksums.
    if path.suffix == ".safetensors":
        check_filled(state, path)
    others = {key: value for key, value in content.items() if not isinstance(value, Tensor)}
    # What a checkpoint of ours says about itself, if it was wrapped as a whole.
    for key, value in content.items():
        if f"[{key!r}]" in wrappers and isinstance(value, dict) and "tagclip" in value:
            others.setdefault("tagclip", value["tagclip"])
    return others | {"model": state}, wrappers


def _parse(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return {"model": load_file(path)}
    return load_torch_file(path)


def _describe(path: Path, error: Exception) -> str:
    """Say what is wrong with a file that cannot be read, and what was expected."""
    size = path.stat().st_size
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"cannot be opened ({error.strerror}), expected a readable file; check its rights"
    if isinstance(error, ForeignPickleError):
        return str(error)
    if isinstance(error, UnsafeFileError):
        return f"file is unsafe: found {error}, expected what torch.save wrote"
    if path.suffix == ".safetensors":
        return _describe_safetensors(path, size, error)
    with path.open("rb") as file:
        if not zipfile.is_zipfile(path) and file.read(2) in (b"PK", b"P", b""):
            return f"file is incomplete ({size} bytes), expected the whole of what torch.save wrote"
    reason = error_text(error)[:80]
    return f"file is damaged ({size} bytes; {reason}), expected what torch.save wrote"


def _describe_safetensors(path: Path, size: int, error: Exception) -> str:
    """The header of a safetensors file says how long it has to be."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = load_json(file.read(length).decode() if length < size else "")
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        whole = 8 + length + max(ends)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError):
        whole = 0
    if size < whole:
        return f"file is incomplete ({size} of {whole} bytes), expected the whole of it"
    reason = one_line(error)[:80]
    return f"file is incomplete or damaged ({size} bytes: {reason}), expected safetensors"
