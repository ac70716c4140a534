"""Small files that would fill the memory are refused before they do, in one line."""

from __future__ import annotations

import gzip
import io
import json
import resource
import struct
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.clip_files import class_list, random_clip, save_archive, sha256, tiny_config
from helpers.toy_dataset import write_json

from tagclip import TextBank, load_config
from tagclip.checkpoint import read_checkpoint
from tagclip.checkpoint.conversion.files import convert_file
from tagclip.errors import TagCLIPError
from tagclip.modeling.clip import CLIPSource, read_clip_weights

MIB = 1 << 20


def peak() -> float:
    """Highest memory of this process up to now, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fails(call: Callable[[], Any], *parts: Any) -> None:
    """One line that has the parts, and no memory."""
    before = peak()
    with pytest.raises(TagCLIPError) as error:
        call()
    assert peak() - before < 100
    assert len(str(error.value).splitlines()) == 1
    missing = [part for part in parts if str(part) not in str(error.value)]
    assert not missing, str(error.value)


def all_readers(path: Path, *parts: Any) -> None:
    """As a checkpoint, as CLIP's weights, and by the converter."""
    fails(lambda: read_checkpoint(path), path, *parts)
    fails(lambda: convert_file(path, path.with_name("out.pth")), path, *parts)
    weights = path.with_suffix(".pt")
    weights.write_bytes(path.read_bytes())
    fails(lambda: read_clip_weights(weights), weights, *parts)


def deflated(path: Path, records: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def test_an_archive_that_unpacks_to_much_more(tmp_path: Path) -> None:
    path = tmp_path / "in.pth"
    torch.save({"model": {"visual.class_embedding": torch.zeros(100 * MIB)}}, tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "whole") as whole:
        deflated(path, {name: whole.read(name) for name in whole.namelist()})
    (tmp_path / "whole").unlink()
    assert path.stat().st_size < MIB
    all_readers(path, "unsafe", "unpacks to 41943")


def test_a_script_archive_that_unpacks_to_much_more(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.pt", tmp_path / "in.pt"
    save_archive(random_clip(), whole)
    with zipfile.ZipFile(whole) as source:
        records = {name: source.read(name) for name in source.namelist()}
    folder = next(iter(records)).split("/")[0]
    deflated(path, records | {f"{folder}/data/0": bytes(100 * MIB)})
    call = lambda: read_clip_weights(path, confirmed_sha256=sha256(path))  # noqa: E731
    fails(call, path, "unsafe", "unpacks to")


def huge(kind: str) -> torch.Tensor:
    """A tensor of petabytes that torch.save writes in some bytes."""
    if kind == "expanded":
        return torch.zeros(1, dtype=torch.half).expand(1 << 50)
    if kind == "sparse":
        return torch.sparse_coo_tensor(torch.tensor([[3]]), torch.ones(1), (1 << 50,))
    return torch.empty(1 << 50, device="meta")


@pytest.mark.parametrize("kind", ["expanded", "sparse", "meta"])
def test_a_tensor_larger_than_its_file(kind: str, tmp_path: Path) -> None:
    torch.save({"model": {"visual.class_embedding": huge(kind)}}, tmp_path / "in.pth")
    all_readers(tmp_path / "in.pth", "unsafe", "a tensor of" if kind == "expanded" else "tensor on")


def test_lists_of_lists_of_lists(tmp_path: Path) -> None:
    """A pickle stores each list once; to go through all of them would take forever."""
    tree: list[Any] = ["x"]
    for _ in range(30):
        tree = [tree] * 9
    torch.save({"model": {}, "tagclip": {"classes": tree}}, tmp_path / "in.pth")
    all_readers(tmp_path / "in.pth", "unsafe", "more than 1000000 values")


def grown(first: str, entry: str) -> str:
    """Eight lines, each of which names the one before nine times."""
    lines = [f"a: &a {first}\n"]
    for old, new in pairwise("abcdefgh"):
        lines.append(f"{new}: &{new} {entry % ', '.join([f'*{old}'] * 9)}\n")
    return "".join(lines)


LAUGHS = {
    "aliases": grown("[x, x]", "[%s]"),
    "a circle": "SEED: &a [*a]\n",
    "merge keys": grown("{x: 1}", "{<<: [%s]}"),
}


@pytest.mark.parametrize("text", LAUGHS.values(), ids=LAUGHS)
def test_a_yaml_that_grows_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    fails(lambda: load_config(path), path, "not a plain yaml file")


@pytest.mark.parametrize("length", [0, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_safetensors_header_of_absurd_length(length: int, tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" * 20)
    fails(lambda: read_checkpoint(path), path, "48 bytes")
    fails(lambda: read_clip_weights(path), path, "48 bytes")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 50], "data_offsets": [0, 1 << 52]},
        {"dtype": "F32", "shape": [1 << 50], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1 << 33, 1 << 33], "data_offsets": [0, 8]},
    ],
)
def test_a_safetensors_tensor_of_absurd_size(entry: dict[str, Any], tmp_path: Path) -> None:
    path, header = tmp_path / "in.safetensors", json.dumps({"a": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    fails(lambda: read_checkpoint(path), path, "bytes")
    fails(lambda: read_clip_weights(path), path, "bytes")


def test_merges_that_unpack_to_much_more(tmp_path: Path) -> None:
    config = tiny_config(text_tokenizer_kwargs={"bpe_path": "merges.gz"})
    path = write_json(tmp_path / "model.json", config)
    for content, found in (
        (gzip.compress(bytes(300 * MIB)), "unpacks to more than 33554432 bytes"),
        (gzip.compress(b"merges" * 99)[:-9], "EOFError"),
        (b"merges", "BadGzipFile"),
        (gzip.compress(b"\xff"), "decode"),
    ):
        (tmp_path / "merges.gz").write_bytes(content)
        fails(lambda: CLIPSource(str(path)).tokenize(["cat"]), path, "merges.gz", found)


class Payload:
    """A numpy file with an object in it would be a pickle."""

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return eval, ("open('canary', 'w')",)


def cached(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "objects":
        np.savez(buffer, vectors=np.array([Payload()], dtype=object))
    elif kind == "bomb":
        np.savez_compressed(buffer, vectors=np.zeros((1, 100 * MIB), np.float32))
    else:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 60},), }}\n"
        member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("vectors.npy", member)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["objects", "bomb", "shape"])
def test_a_cache_of_class_vectors_is_not_trusted(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is encoded anew, with a warning."""
    monkeypatch.chdir(tmp_path)
    source = CLIPSource(str(write_json(tmp_path / "model.json", tiny_config())))
    options = {"source": source, "templates": ("a {}",), "cache_dir": str(tmp_path / "cache")}
    words = class_list(["cat"], ["sky"])
    expected = TextBank(**options)(words)
    (file,) = (tmp_path / "cache").glob("*.npz")
    file.write_bytes(cached(kind))
    assert torch.equal(TextBank(**options)(words), expected)
    assert f"{file}: damaged" in caplog.text
    assert not (tmp_path / "canary").exists()
