"""Tensors of a TorchScript archive (OpenAI's CLIP files), read without running its code."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.jit import _pickle

from tagclip.utils.untrusted import UnsafeFileError, check_zip

__all__ = ["is_torchscript", "read_torchscript_tensors"]

# Everything that is needed to rebuild the tensors; the rest is code, constants and traces.
_TENSOR_RECORDS = ("data.pkl", "version", "byteorder")
# CLIP has a thousand; shared ones count each time.
_MODULES = 100_000
# torch's own functions that return a list or dict unchanged.
_CONTAINERS = (
    _pickle.build_boollist,
    _pickle.build_doublelist,
    _pickle.build_intlist,
    _pickle.build_tensorlist,
    _pickle.restore_type_tag,
)


class _Module:
    """Stands for a scripted module: holds its attributes, has no code."""


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of `torch.jit.save`."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        members = check_zip(path, _TENSOR_RECORDS)
    except (UnsafeFileError, zipfile.BadZipFile):
        # Whoever reads it says what is wrong.
        return False
    return any(member.filename.endswith("/constants.pkl") for member in members)


def read_torchscript_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of all modules under their dotted names, on the CPU.

    The archive's code is left out: the rest is what `torch.save` would have written, except that
    the modules' classes exist only in that code. Empty classes stand in for them, and torch's
    restricted unpickler refuses all others.

    Raises:
        Exception: whatever zipfile and `torch.load` raise for a damaged or unsafe archive.
    """
    check_zip(path, (*_TENSOR_RECORDS, "data/"))
    kept = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(kept, "w") as target:
        for name in source.namelist():
            record = name.partition("/")[2]
            if record in _TENSOR_RECORDS or record.startswith("data/"):
                content = source.read(name)
                target.writestr(f"archive/{record}", content)
                if record == "data.pkl":
                    classes = list(_module_classes(content))
    kept.seek(0)
    with torch.serialization.safe_globals([*classes, *_CONTAINERS]):
        root = torch.load(kept, map_location="cpu", weights_only=True)
    tensors = {}
    for count, (name, tensor) in enumerate(_tensors(root)):
        if count > _MODULES:
            raise UnsafeFileError(f"more than {_MODULES} modules")
        if tensor is not None:
            tensors[name] = tensor
    return tensors


def _module_classes(pickled: bytes) -> Iterator[type]:
    """Yield an empty class for each that the archive's code would have defined."""
    names = {arg for opcode, arg, _ in pickletools.genops(pickled) if opcode.name == "GLOBAL"}
    for module, _, name in (full.partition(" ") for full in sorted(names)):
        if module.startswith("__torch__."):
            yield type(name, (_Module,), {"__module__": module})


def _tensors(node: Any, prefix: str = "") -> Iterator[tuple[str, Tensor | None]]:
    """Yield every module's own name, with None, and those of its tensors."""
    yield prefix, None
    for name, value in vars(node).items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach()
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
