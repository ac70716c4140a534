"""Reading checkpoints: damaged, unsafe and foreign files."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from helpers.tiny_checkpoint import save_tiny

from tagclip.checkpoint import read_checkpoint
from tagclip.errors import CheckpointError


@pytest.fixture
def saved(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    return save_tiny(tiny_cfg, tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 100, 20_000, -1])
def test_a_truncated_file_names_its_size_and_the_previous_one(
    tiny_cfg: CfgNode, saved: Path, kept: int
) -> None:
    content, later = saved.read_bytes(), saved.with_name("model_later.pth")
    os.utime(saved, (1, 1))
    for age, name in ((2, "other"), (3, "nan_dump")):
        other = saved.with_name(f"{name}.pth")
        torch.save({"loss": torch.tensor(1.0)}, other)
        os.utime(other, (age, age))
    later.write_bytes(content[:kept])
    message = rf"model_later\.pth: file is incomplete \({later.stat().st_size} bytes\)"
    with pytest.raises(CheckpointError, match=rf"{message}.*; model_final\.pth beside it can be"):
        read_checkpoint(later)
    saved.write_bytes(content[:kept])
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(later)
    assert "beside" not in str(caught.value)


def test_the_newest_readable_checkpoint_is_named(saved: Path) -> None:
    for age, name in ((3, "newest"), (1, "oldest"), (2, "middle")):
        other = saved.with_name(f"{name}.pth")
        other.write_bytes(saved.read_bytes())
        os.utime(other, (age, age))
    saved.unlink()
    with pytest.raises(CheckpointError, match=r"no such checkpoint.*; newest\.pth beside it"):
        read_checkpoint(saved)


def test_a_flipped_bit_is_noticed(saved: Path) -> None:
    """torch.load alone would return another number."""
    content = bytearray(saved.read_bytes())
    numbers = read_checkpoint(saved)["model"]["sem_seg_head.trusty_token"].numpy().tobytes()
    content[content.index(numbers) + 5] ^= 0x10
    saved.write_bytes(content)
    torch.load(saved, weights_only=True)
    with pytest.raises(CheckpointError, match=r"file is damaged .*checksum"):
        read_checkpoint(saved)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["x.pkl", "x.pth", "legacy.pth", "x.pt", "x"])
def test_reading_never_executes_code(tmp_path: Path, name: str) -> None:
    path, bomb = tmp_path / name, {"model": Bomb(tmp_path / "executed")}
    if name == "x.pth":
        torch.save(bomb, path)
    else:
        path.write_bytes(pickle.dumps(bomb, protocol=2))
    expected = "unsafe" if path.suffix == ".pth" else r"expected \.pth or \.safetensors"
    with pytest.raises(CheckpointError, match=expected):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1], "a list"),
        ({"model": 3}, "other things than tensors"),
        ({"model": {"a": 3}}, "other things than tensors"),
        ({"a": "b"}, "other things than tensors"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: Any, found: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"x\.pth: found {found}, expected"):
        read_checkpoint(tmp_path / "x.pth")
