"""Files of `torch.save`, read without executing anything; what cannot be read so is named."""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagclip.utils.text import listed
from tagclip.utils.untrusted import check_zip

__all__ = ["ForeignPickleError", "load_torch_file"]

# The only one that torch's restricted unpickler knows.
_PROTOCOL = 2
# With this number, binary or text, begins what torch.save writes without a zip archive.
_MAGIC = (b"l\xfc\x9cF\xf9 j\xa8P\x19", b"L119547037146038801333356L")
_HEAD = 64
# Begin pickles: PROTO; of protocols 0 and 1 dict, list, mark, global and the number above.
_BEGINNINGS = (b"\x80", b"}", b"]", b"(", b"c", b"L")
_LISTED = 5


class ForeignPickleError(ValueError):
    """A file is no pickle, or one of other objects or another protocol; says what to do."""


class _Inert:
    """Stands for an object of another library. It keeps nothing and has no code.

    numpy's own classes are no choice: their states, made up, reach any memory.
    """

    def __new__(cls, *args: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _DType(_Inert):
    code, order = "", "<"

    def __init__(self, code: Any = "", *args: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


def _inert(*args: Any) -> _Inert:
    return _Inert()


def _scalar(dtype: Any, content: Any) -> Any:
    """The number that a numpy scalar holds."""
    plain = isinstance(dtype, _DType) and re.fullmatch("[biuf][1248]", str(dtype.code))
    if not plain or dtype.order not in ("<", ">", "|") or not isinstance(content, bytes):
        return _Inert()
    return np.frombuffer(content, dtype.order + dtype.code, 1)[0].item()


# Data beside the weights, such as a learning curve of mmengine or a score of numpy.
_STAND_INS = [
    (_DType, "numpy.dtype"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_inert, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    (_Inert, "numpy.ndarray"),
    (_Inert, "mmengine.logging.history_buffer.HistoryBuffer"),
    # mmengine pickles its buffers with methods of theirs.
    (_inert, "builtins.getattr"),
    (_Inert, "argparse.Namespace"),
    (_Inert, "pathlib.PosixPath"),
    # As Python 3.13 writes it.
    (_Inert, "pathlib._local.PosixPath"),
]


def load_torch_file(path: Path, *, tensors: bool = True) -> Any:
    """Read a file of `torch.save` onto the CPU; its checksums are compared.

    Args:
        path: the file.
        tensors: False neither reads nor checks the numbers in them: for a look at the rest.

    Returns:
        What was saved. A scalar of numpy is a Python number; an array of numpy, a buffer of
        mmengine, a path and an `argparse.Namespace` are objects without content.

    Raises:
        ForeignPickleError: it is no pickle, holds other Python objects, or is a pickle of another
            protocol.
        Exception: whatever zipfile and `torch.load` raise for a damaged or unsafe file.
    """
    if zipfile.is_zipfile(path):
        check_zip(path)
        # torch.load does not look at the checksums that torch.save writes.
        with zipfile.ZipFile(path) as archive:
            if tensors and (damaged := archive.testzip()):
                raise zipfile.BadZipFile(f"checksum of {damaged}")
    with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
        # The error tells of another protocol.
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=not tensors)
        except OSError:
            raise
        except Exception as error:
            if refused := _refused(path, error):
                raise ForeignPickleError(refused) from error
            raise


def _refused(path: Path, error: Exception) -> str:
    """Say what torch refused, and what to do about it; "" if the file is cut off or damaged."""
    is_zip = zipfile.is_zipfile(path)
    head = _head(path, is_zip)
    if not is_zip and head[:2] in (b"PK", b"P", b""):
        return ""
    if not is_zip and not _is_pickle(head):
        return (
            f"file is no checkpoint: it begins with {head[:16]!r}, expected what torch.save wrote; "
            "check the path, or download it again"
        )
    if not isinstance(error, pickle.UnpicklingError):
        return ""
    reason = str(error)
    by_torch = is_zip or any(number in head for number in _MAGIC)
    source, target = str(path), str(path.with_stem(f"{path.stem}_plain"))
    load = f"import torch; c = torch.load({source!r}, 'cpu', weights_only=False)"
    if not by_torch:
        load = f"import pickle, torch; c = pickle.load(open({source!r}, 'rb'))"
    protocol = head[1] if head[:1] == b"\x80" else "0 or 1" if by_torch else _PROTOCOL
    if "Unsupported operand" in reason and protocol != _PROTOCOL:
        return (
            f"found pickle protocol {protocol}, expected {_PROTOCOL}, torch.save's own; if you "
            f"trust the file, save it again: {load}; torch.save(c, {target!r})"
        )
    names = _foreign_names(path, reason)
    shown = f" ({listed([name[:60] for name in names], _LISTED)})" if names else ""
    return (
        f"file is unsafe or no checkpoint: found Python objects{shown}, which may execute "
        "code, expected tensors, numbers and text only; if you trust it, save its weights alone: "
        f"{load}; c = c.get('state_dict', c.get('model', c)) if isinstance(c, dict) else c; "
        f"torch.save(getattr(c, 'state_dict', lambda: c)(), {target!r})"
    )


def _foreign_names(path: Path, reason: str) -> list[str]:
    """What the pickle calls by name and torch refuses; where torch does not list all, the first."""
    # Only of zip archives without odd instructions there is a list.
    with contextlib.suppress(ValueError, EOFError, pickle.UnpicklingError):
        if names := torch.serialization.get_unsafe_globals_in_checkpoint(path):
            return sorted(names)
    return re.findall(r"GLOBAL (\S+)", reason)[:1]


def _is_pickle(head: bytes) -> bool:
    """Whether a file may be one by its first bytes, which are parsed and not executed."""
    try:
        list(pickletools.genops(head))
    except ValueError as error:
        # Any other error is that of the end.
        return head.startswith(_BEGINNINGS) and "unknown" not in str(error)
    return head.startswith(_BEGINNINGS)


def _head(path: Path, is_zip: bool) -> bytes:
    """The first bytes of the pickle."""
    if not is_zip:
        with path.open("rb") as file:
            return file.read(_HEAD)
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        with archive.open(name) as file:
            return file.read(_HEAD)
