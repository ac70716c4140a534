"""Files of torch.save: harmless data of others is passed over, all else is named with a remedy."""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle
import sys
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.clip_files import random_clip
from helpers.mmengine_files import save_mmengine

from tagclip.checkpoint import read_checkpoint
from tagclip.checkpoint.conversion.files import convert_file
from tagclip.errors import CheckpointError
from tagclip.modeling.clip import read_clip_weights
from tagclip.utils.torch_file import ForeignPickleError, load_torch_file

STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False])}


def convert(path: Path) -> dict[str, Any]:
    convert_file(path, path.with_name("out.pt"))
    return torch.load(path.with_name("out.pt"), weights_only=True)


# All that read such files, and the suffix that they take.
READERS = {
    "checkpoint": (".pth", lambda path: read_checkpoint(path)["model"]),
    "CLIP": (".pt", lambda path: read_clip_weights(path).state),
    "CLIP .bin": (".bin", lambda path: read_clip_weights(path).state),
    "converter": (".pth", convert),
}


def run_remedy(error: Exception, path: Path) -> Path:
    """Do what the message says, and return the file that it made."""
    lines = str(error).partition(": import ")[2]
    assert lines, error
    exec(f"import {lines}", {})
    return path.with_stem(f"{path.stem}_plain")


def by_torch(content: Any, path: Path, protocol: int, is_zip: bool) -> None:
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)


WRITERS: dict[str, Callable[[Any, Path, int], None]] = {
    "zip": lambda *args: by_torch(*args, True),
    "legacy": lambda *args: by_torch(*args, False),
    "pickle": lambda content, path, protocol: path.write_bytes(pickle.dumps(content, protocol)),
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_pickle_is_called_no_checkpoint(reader: str, tmp_path: Path) -> None:
    suffix, read = READERS[reader]
    path = tmp_path / f"x{suffix}"
    for content in (
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8\xff\xe0\0\x10JFIF", b"GIF89a\x01\0\x01\0",
        b"<!DOCTYPE html>", b"MODEL:\n  WEIGHTS: x", b"hello", b"{}", b"version https://git-lfs",
        b"\x1f\x8b\x08\0", b"\0" * 99, b"config: 3\nnext: 4\nlast: 5\n", b"%PDF-1.7",
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(
            f"{path}: file is no checkpoint: it begins with {content[:5]!r}"[:-1]
        )
        assert "\n" not in message and "import" not in message


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("writer", WRITERS)
# torch itself cannot load what it saves with protocol 0.
@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_protocol_is_read_or_named_with_what_mends_it(
    reader: str, writer: str, protocol: int, tmp_path: Path
) -> None:
    suffix, read = READERS[reader]
    state = dict(random_clip().state_dict())
    path = tmp_path / f"it's{suffix}"
    WRITERS[writer]({"model": state, "best": np.float32(0.5)}, path, protocol)
    if writer == "pickle" or protocol != 2:
        with pytest.raises(CheckpointError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and "\n" not in message
        assert "if you trust" in message and "damaged" not in message
        if protocol > 3 or (writer != "pickle" and protocol != 2):
            expected = protocol if protocol > 1 else "0 or 1"
            assert f"found pickle protocol {expected}, expected 2" in message
            assert "unsafe" not in message
        path = run_remedy(caught.value, path)
    assert read(path).keys() == state.keys()


DATA = {
    "numpy": (np.float64(0.5), 0.5),
    "half": (np.float16(0.5), 0.5),
    "big endian": (np.array([258], ">i2")[0], 258),
    "bool": (np.bool_(True), True),
    "complex": (np.complex64(1), None),
    "text": (np.str_("a"), None),
    "array": (np.ones((2, 3)), None),
    "objects": (np.array([None, {}], dtype=object), None),
    "arguments": (argparse.Namespace(lr=0.1, out=Path("x")), None),
    "path": (Path("x"), None),
}


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("kind", DATA)
def test_harmless_data_is_no_obstacle(kind: str, is_zip: bool, tmp_path: Path) -> None:
    """Numbers of numpy come as Python's, all else without content."""
    value, expected = DATA[kind]
    by_torch({"model": STATE, "x": value}, tmp_path / "x.pth", 2, is_zip)
    content = load_torch_file(tmp_path / "x.pth")
    assert all(torch.equal(content["model"][name], tensor) for name, tensor in STATE.items())
    if expected is None:
        assert not vars(content["x"])
    else:
        assert content["x"] == expected and type(content["x"]) is type(expected)


def test_a_path_that_python_3_13_wrote_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "pathlib._local", pathlib)
        context.setattr(pathlib.PosixPath, "__module__", "pathlib._local")
        torch.save({"model": STATE, "work_dir": pathlib.PosixPath("runs")}, tmp_path / "a.pth")
    assert b"pathlib._local" in (tmp_path / "a.pth").read_bytes()
    found = load_torch_file(tmp_path / "a.pth")["model"]
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


def test_a_checkpoint_of_mmengine_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_mmengine(tmp_path / "iter_20000.pth", STATE, monkeypatch)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    assert {"builtins.getattr", "numpy.ndarray"} < set(names)
    content = load_torch_file(path)
    assert torch.equal(content["state_dict"]["a"], STATE["a"])
    assert content["message_hub"]["runtime_info"]["eta"] == 0.5


class Made:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.mkdir, ("made",), "posix.mkdir"),
        (exec, ("import os; os.mkdir('made')",), "exec"),
        (getattr(os, "system"), ("mkdir made",), "posix.system"),  # noqa: B009
        (Counter, ("aa",), ""),
        (Fraction, (1, 2), "fractions.Fraction"),
    ],
)
def test_code_is_named_and_never_called(
    function: Callable, args: tuple, name: str, is_zip: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    by_torch({"model": STATE, "x": Made(function, *args)}, Path("x.pth"), 2, is_zip)
    if not name:
        assert load_torch_file(Path("x.pth"))
        return
    with pytest.raises(ForeignPickleError, match=rf"unsafe .*\((builtins\.)?{name}\)"):
        load_torch_file(Path("x.pth"))
    assert not Path("made").exists()


def test_what_getattr_returns_cannot_be_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmengine's files call it; here it leads to nothing."""

    buffer = b"cnumpy\nndarray\n"
    # getattr(ndarray, "tofile")("made")
    pickled = b"\x80\x02c__builtin__\ngetattr\n" + buffer + b"X\x06\x00\x00\x00tofile\x86R"
    (tmp_path / "x.pth").write_bytes(pickled + b"X\x04\x00\x00\x00made\x85R.")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ForeignPickleError, match="unsafe"):
        load_torch_file(Path("x.pth"))


def test_a_whole_model_is_saved_again_as_its_state(tmp_path: Path) -> None:
    for content in (torch.nn.Linear(2, 3), {"model": torch.nn.Linear(2, 3), "epoch": 1}):
        path = tmp_path / "x.pth"
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear") as caught:
            read_checkpoint(path)
        path = run_remedy(caught.value, path)
        assert read_checkpoint(path)["model"].keys() == {"weight", "bias"}
