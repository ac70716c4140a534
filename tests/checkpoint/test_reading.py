"""Reading checkpoints: damaged, unsafe and foreign files."""

from __future__ import annotations

import math
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from helpers.tiny_checkpoint import assert_equal, save_tiny
from safetensors.torch import save_file

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


def test_the_readable_checkpoint_of_the_latest_iteration_is_named(saved: Path) -> None:
    """Whatever their times say; damaged ones and those that hold no iteration come last."""
    content = torch.load(saved, weights_only=True)
    iterations = {"a": 2, "b": 10, "c": 9, "d": None, "e": "11", "f": True, "g": 12}
    for age, (name, iteration) in enumerate(iterations.items()):
        other = saved.with_name(f"{name}.pth")
        torch.save(content | ({} if iteration is None else {"iteration": iteration}), other)
        os.utime(other, (age, age))
    other.write_bytes(other.read_bytes()[:-200])
    saved.unlink()
    for expected in ("b", "c", "a", "f"):
        with pytest.raises(CheckpointError, match=rf"no such checkpoint.*; {expected}\.pth beside"):
            read_checkpoint(saved)
        saved.with_name(f"{expected}.pth").unlink()


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
        ({"model": 3}, "a int named 'model'"),
        ({"model": {"a": 3}}, "a dict named 'model'"),
        ({"a": "b"}, "a str named 'a'"),
        ({1: torch.zeros(1)}, "the key 1"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: Any, found: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"x\.pth: found {found}, expected"):
        read_checkpoint(tmp_path / "x.pth")


TOKEN = "sem_seg_head.trusty_token"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2])
def test_one_weight_that_is_not_finite_is_enough(
    saved: Path, value: float, dtype: torch.dtype
) -> None:
    """The checkpoint to take instead is named; another broken one is not."""
    content = torch.load(saved)
    content["model"][TOKEN].view(-1)[3] = value
    content["model"][TOKEN] = content["model"][TOKEN].to(dtype)
    for name in ("model_0000003", "model_0000005"):
        torch.save(content, saved.with_name(f"{name}.pth"))
    found = f"found values that are not finite in {TOKEN}, expected .*; take an earlier checkpoint"
    message = rf"model_0000005\.pth: {found}.*last_checkpoint; model_final\.pth beside it can be"
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(saved.with_name("model_0000005.pth"))


@pytest.mark.parametrize(
    ("scale", "found"), [(1e-300, "too small for float32"), (1e300, "that are not finite"),
                         (1e-30, "")],
)  # fmt: skip
def test_weights_of_double_precision_have_values_in_float32(
    saved: Path, scale: float, found: str
) -> None:
    content = torch.load(saved)
    content["model"][TOKEN] = content["model"][TOKEN].double() * scale
    torch.save(content, saved.with_name("model_0000005.pth"))
    refused = pytest.raises(CheckpointError, match=f"found values {found} in {TOKEN}, expected")
    with refused if found else nullcontext():
        read_checkpoint(saved.with_name("model_0000005.pth"))


def test_a_file_that_is_zero_from_somewhere_on_is_incomplete(saved: Path, tmp_path: Path) -> None:
    """A download that broke off in a file of the full size; safetensors has no checksums."""
    path = tmp_path / "other.safetensors"
    save_file(torch.load(saved)["model"], path)
    read_checkpoint(path)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for kept in (header, header + (len(content) - header) // 3):
        path.write_bytes(content[:kept] + bytes(len(content) - kept))
        with pytest.raises(
            CheckpointError, match=r"other\.safetensors: found nothing but zeros in "
        ):
            read_checkpoint(path)


def test_other_types_of_numbers_are_finite(tmp_path: Path) -> None:
    kinds = (torch.int64, torch.bool, torch.uint8, torch.bfloat16, torch.float64, torch.complex64)
    state = {str(kind): torch.ones(2, dtype=kind) for kind in kinds}
    torch.save(state | {"empty": torch.zeros(0)}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth")["model"].keys() == {*state, "empty"}


def test_a_file_that_is_none_of_the_run_is_not_named(saved: Path, tmp_path: Path) -> None:
    """Neither beside a checkpoint of somebody else, nor outside the folder of a run."""
    theirs, other = saved.with_name("theirs.pth"), tmp_path / "downloads" / "model_final.pth"
    other.parent.mkdir()
    saved.with_name("model_0000001.pth").write_bytes(saved.read_bytes())
    shutil.copy(saved, other.with_name("model_0000001.pth"))
    for path in (theirs, other):
        path.write_bytes(b"PK")
        with pytest.raises(CheckpointError, match=rf"{path.name}: file is inc") as caught:
            read_checkpoint(path)
        assert "beside" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrap", "found"),
    [
        (lambda m: {"model": {f"module.{n}": t for n, t in m.items()}}, "['model'], module."),
        (lambda m: {"model": {f"_orig_mod.{n}": t for n, t in m.items()}}, "_orig_mod."),
        (lambda m: {"state_dict": m}, "['state_dict']"),
        (lambda m: {"model": m, "ema": {n: t + 1 for n, t in m.items()}}, "['ema'] (EMA) left"),
        (lambda m: {"model": m}, ""),
        (lambda m: m, ""),
    ],
)
def test_what_others_put_around_the_weights_is_left_out(
    saved: Path, wrap: Callable[[dict], dict], found: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected, path = read_checkpoint(saved), saved.with_name("theirs.pth")
    content = wrap(expected["model"])
    torch.save(content | ({} if TOKEN in content else {"tagclip": expected["tagclip"]}), path)
    caplog.clear()
    with caplog.at_level("INFO"):
        read = read_checkpoint(path)
    assert_equal(read["model"], expected["model"])
    assert read.get("tagclip") == (None if TOKEN in content else expected["tagclip"])
    assert [f"{path}: unwrapped" in m and found in m for m in caplog.messages] == [
        True for _ in [found] if found
    ]
