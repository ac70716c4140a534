"""Bounds for files from elsewhere: how deep, how many and how large the things in them may be."""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml
from torch import Tensor

from tagclip.utils.text import one_line

__all__ = ["UnsafeFileError", "check_content", "check_zip", "load_json", "load_yaml", "read_gzip"]

# Far beyond every config, class list and result; far below Python's recursion limit.
_DEPTH = 64
# Values of a yaml text with its aliases written out.
_YAML_NODES = 100_000
# Values of a checkpoint, tensors count as one.
_NODES = 1_000_000
# torch.save compresses nothing; floating-point numbers would shrink by a tenth.
_UNPACKED = 4
# What zipfile raises on damaged archives.
_ZIP_DAMAGE = (
    zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, RuntimeError, EOFError,
    zlib.error,
)  # fmt: skip
# Safe, and several times as fast where PyYAML has its C part.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueLoader(_LOADER):
    """PyYAML takes the last of several equal keys, and says nothing of what the others held."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        found: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in found:
                raise ValueError(
                    f"line {line}: key {key.value!r} again, which is in line {found[name]} of this "
                    "section; put both together"
                )
            found[name] = line
        return super().construct_mapping(node, deep)


class UnsafeFileError(ValueError):
    """A file would take much more memory, time or stack than its size lets expect."""


def load_json(text: str, **options: Any) -> Any:
    """`json.loads` that ends with ValueError also on deep nesting.

    Args:
        text: the json; a byte-order mark at its beginning is left out.
        options: of `json.loads`.

    Raises:
        ValueError: it is no json, or is nested deeper than 64 levels.
    """
    try:
        tree = json.loads(text.removeprefix("\ufeff"), **options)
    except RecursionError as error:
        raise UnsafeFileError(f"nested deeper than {_DEPTH} levels") from error
    # A json holds nothing twice, so that its text bounds the number of its values.
    check_content(tree, 0, len(text) + 1)
    return tree


def load_yaml(text: str) -> Any:
    """Read yaml without tags, merge keys and bombs.

    The parser of libyaml overflows the stack on deep nesting, so that events are counted first.

    Raises:
        ValueError: it is no plain yaml, has a key twice in one section, is nested deeper than 64
            levels, or has more than 100,000 values with its aliases written out.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEPTH:
                raise UnsafeFileError(f"nested deeper than {_DEPTH} levels")
            if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
                raise UnsafeFileError("merge keys (<<) are not read")
        tree = yaml.load(text, Loader=_UniqueLoader)
    # PyYAML lets errors of int(), date() and of a missing match through.
    except (yaml.YAMLError, TypeError, AttributeError, OverflowError, LookupError) as error:
        raise ValueError(one_line(error) or type(error).__name__) from error
    check_content(tree, 0, _YAML_NODES)
    return tree


def check_content(content: Any, size: int, limit: int = _NODES) -> None:
    """Refuse what a checkpoint may hold although its file is small, or its tensors are no numbers.

    Args:
        content: what `torch.load` returned.
        size: bytes of the file. No tensor and no storage of one may have more.
        limit: number of values that it may have.

    Raises:
        UnsafeFileError: there are more values or a deeper nesting than any checkpoint has, or a
            tensor is sparse, quantized, without data, or larger than the file.
    """
    # Shared values count each time.
    stack, count = [(content, 0)], 0
    while stack:
        node, depth = stack.pop()
        count += 1
        if isinstance(node, Tensor):
            _check_tensor(node, size)
            continue
        children = _children(node)
        if depth > _DEPTH:
            raise UnsafeFileError(f"nested deeper than {_DEPTH} levels")
        if count + len(stack) + len(children) > limit:
            raise UnsafeFileError(f"more than {limit} values")
        stack += [(child, depth + 1) for child in children]


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return [*node.keys(), *node.values()]
    return list(node) if isinstance(node, (list, tuple, set, frozenset)) else []


def _check_tensor(tensor: Tensor, size: int) -> None:
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_quantized or tensor.is_nested:
        raise UnsafeFileError(f"a {tensor.layout} tensor on {tensor.device}, not a plain one")
    needed = max(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
    if needed > size:
        raise UnsafeFileError(f"a tensor of {needed} bytes in a file of {size}")


def check_zip(path: Path, records: Iterable[str] = ()) -> list[zipfile.ZipInfo]:
    """Return the members of a zip archive, unless they unpack to much more than the file.

    Args:
        path: the archive; nothing of it is read but its directory.
        records: beginnings of the names that count, behind the first folder; none: all.

    Raises:
        UnsafeFileError: they would unpack to more than four times the size of the file.
        zipfile.BadZipFile: the archive is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except _ZIP_DAMAGE as error:
        raise zipfile.BadZipFile(f"{type(error).__name__}: {error}") from error
    parts = tuple(records)
    counted = [m for m in members if not parts or m.filename.partition("/")[2].startswith(parts)]
    size, unpacked = path.stat().st_size, sum(member.file_size for member in counted)
    if unpacked > _UNPACKED * size:
        raise UnsafeFileError(f"an archive of {size} bytes that unpacks to {unpacked}")
    return members


def read_gzip(file: BinaryIO, limit: int) -> bytes:
    """Unpack a gzip file, reading no more than one byte beyond the limit.

    Raises:
        ValueError: it is damaged, or unpacks to more than ``limit`` bytes.
    """
    try:
        with gzip.open(file) as unpacked:
            content = unpacked.read(limit + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if len(content) > limit:
        raise UnsafeFileError(f"unpacks to more than {limit} bytes")
    return content
