"""What the fuzz tests share: targets, and inputs that nobody would write by hand."""

from __future__ import annotations

import copy
import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from hypothesis import strategies as st
from PIL import Image

from tagclip.errors import TagCLIPError

__all__ = [
    "TARGETS",
    "Space",
    "Target",
    "changed_bytes",
    "changed_tree",
    "json_values",
    "labels",
    "repaired_png",
    "rezipped",
    "safetensors_header",
    "target",
    "tried",
]


@dataclass
class Space:
    """Where a target works.

    Attributes:
        folder: for its files.
        cfg: of the tiny model.
    """

    folder: Path
    cfg: CfgNode

    def write(self, name: str, content: bytes | str) -> Path:
        """Write a file; what Python cannot encode stands for itself."""
        path = self.folder / name
        path.write_bytes(
            content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        )
        return path


Target = tuple[st.SearchStrategy[Any], Callable[[Any], Any]]
TARGETS: dict[str, Callable[[Space], Target]] = {}


def target(make: Callable[[Space], Target]) -> Callable[[Space], Target]:
    """Register what makes (inputs, function to call with each)."""
    TARGETS[make.__name__] = make
    return make


def tried(call: Callable[[], Any]) -> None:
    """Call; nothing but a TagCLIPError in one line may come out."""
    try:
        call()
    except TagCLIPError as error:
        assert str(error) and len(str(error).splitlines()) == 1, str(error)


_NUMBERS = st.one_of(
    st.integers(-3, 70_000),
    st.integers(),
    st.sampled_from([2**31, 2**63, 10**30, math.inf, -math.inf, math.nan, 1e300]),
    st.floats(),
)
_TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", " ", "cat", "Cat ", "a\nb", "\x1b[2J", "\ud800", "{}", "%s", "../x", "\0"]
    ),
)
_SCALARS = st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS)


def json_values(keys: tuple[str, ...] = ()) -> st.SearchStrategy[Any]:
    """Any value that json can hold, with these keys more often than others."""
    names = st.one_of(st.sampled_from(keys), _TEXTS) if keys else _TEXTS
    return st.recursive(
        _SCALARS,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=5)
        ),
        max_leaves=12,
    )


@st.composite
def changed_tree(draw: st.DrawFn, tree: Any, values: st.SearchStrategy[Any]) -> Any:
    """A copy of nested dicts and lists in which one to three values are others, gone or twice."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        # What is near the root is changed as often as what is deep; the root itself never is.
        node, key = tree, None
        while node:
            parent, key = node, draw(st.sampled_from(_keys(node)))
            child = parent[key]
            if not isinstance(child, (dict, list)) or draw(st.integers(0, 2)) == 0:
                break
            node = child
        if key is None:
            return tree
        node = parent
        change = draw(st.sampled_from(["replace", "replace", "remove", "twice", "rename"]))
        if change == "replace":
            node[key] = draw(values)
        elif change == "remove":
            del node[key]
        elif isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        else:
            node[draw(_TEXTS)] = copy.deepcopy(node[key])
    return tree


def _keys(node: dict | list) -> list[Any]:
    return list(node) if isinstance(node, dict) else list(range(len(node)))


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes, head: int = 0) -> bytes:
    """A copy of a file with flipped bits, other bytes, less or more at its end.

    Args:
        content: the file.
        head: half of the changes are among the first so many bytes; 0: anywhere.
    """
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["flip", "flip", "bytes", "cut", "insert", "length"]))
        end = min(head, len(data)) if head and draw(st.booleans()) else len(data)
        at = draw(st.integers(0, max(end - 1, 0)))
        if kind == "cut":
            del data[at : draw(st.sampled_from([len(data), at + 1, at + 7]))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "length":
            number = draw(st.sampled_from([0, 1, 2**16 - 1, 2**31, 2**32 - 1]))
            data[at : at + 4] = struct.pack(draw(st.sampled_from(["<I", ">I"])), number)
        elif kind == "bytes":
            new = draw(st.binary(min_size=1, max_size=4))
            data[at : at + len(new)] = new
        elif data:
            data[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


def repaired_png(content: bytes) -> bytes:
    """The same chunks with checksums that fit: without them a reader stops at the first change."""
    data, at = bytearray(content), 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(data)


def rezipped(archive: Path, record: str, content: bytes) -> bytes:
    """An archive with other content of the record with this ending, and checksums that fit."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, content if name.endswith(record) else source.read(name))
    return buffer.getvalue()


def labels() -> dict[str, bytes]:
    """Whole label files of every kind that is read, by suffix and kind."""
    values = np.random.default_rng(0).integers(0, 5, (9, 13)).astype(np.uint8)
    palette = Image.fromarray(values).convert("P")
    images = {
        "gray.png": Image.fromarray(values),
        "bits.png": Image.fromarray(values > 2),
        "palette.png": palette,
        "deep.png": Image.fromarray(values.astype(np.uint16) * 300),
        "deep.tif": Image.fromarray(values.astype(np.uint16) * 300),
        "gray.gif": palette,
    }
    return {name: _encoded(image, name) for name, image in images.items()}


def _encoded(image: Image.Image, name: str) -> bytes:
    buffer = io.BytesIO()
    options = {"compression": "tiff_adobe_deflate"} if name.endswith("tif") else {}
    image.save(buffer, {"png": "PNG", "tif": "TIFF", "gif": "GIF"}[name[-3:]], **options)
    return buffer.getvalue()


def safetensors_header(content: bytes) -> tuple[Any, bytes]:
    """Header and data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]
