"""CLIP weights inside what trainers and wrappers put around them, and in several files."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.clip_files import FORMATS, fails, random_clip, write_json
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tagclip.errors import CheckpointError
from tagclip.modeling.clip import CLIPSource, read_clip_weights
from tagclip.modeling.clip.weights import weights_sha256


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return random_clip()


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


Wrap = Callable[[CLIP], dict[str, Any]]
WRAPPERS: dict[str, tuple[Wrap, str]] = {
    "parallel": (lambda clip: nn.DataParallel(clip).state_dict(), "module."),
    "compiled": (lambda clip: torch.compile(clip).state_dict(), "_orig_mod."),
    "averaged": (lambda clip: AveragedModel(clip).state_dict(), "n_averaged (an av"),
    "Lightning": (
        lambda clip: {"state_dict": prefixed("model.", clip.state_dict()), "loops": {}},
        "['state_dict'], model.",
    ),
    "model": (lambda clip: {"model": clip.state_dict(), "epoch": 3}, "['model']"),
    "model_state_dict": (lambda clip: {"model_state_dict": clip.state_dict()}, "['model_state_d"),
    "EMA beside": (
        lambda clip: {"state_dict": clip.state_dict(), "state_dict_ema": random_clip(seed=1)
                      .state_dict()},
        "['state_dict'], ['state_dict_ema'] (EMA) left",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrapped_weights_load_and_a_line_tells(
    kind: str, clip: CLIP, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrap, told = WRAPPERS[kind]
    path = tmp_path / "clip.pt"
    torch.save(wrap(clip), path)
    with caplog.at_level(logging.INFO):
        state = read_clip_weights(path).state
    expected = clip.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and lines[0].startswith(f"{path}: CLIP weights unwrapped: {told}")


def test_plain_weights_need_no_line(
    clip: CLIP, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        read_clip_weights(FORMATS["open_clip .safetensors"](clip, tmp_path))
    assert not caplog.records


def test_two_models_in_one_file_are_refused_with_their_names(clip: CLIP, tmp_path: Path) -> None:
    path, state = tmp_path / "clip.pt", clip.state_dict()
    torch.save(prefixed("student.", state) | prefixed("teacher.", state), path)
    fails(CheckpointError, lambda: read_clip_weights(path), path, "begin with student, teacher")
    torch.save({"student": state, "teacher": state}, path)
    fails(CheckpointError, lambda: read_clip_weights(path), path, "'student'", "model_state_dict")


# Several files


def sharded(path: Path, weights: str) -> Path:
    """Cut the weight file of a folder in two, with the index that the hub's tools write."""
    file = path / weights
    is_safe = file.suffix == ".safetensors"
    state = load_file(file) if is_safe else torch.load(file, weights_only=True)
    file.unlink()
    names, places = sorted(state), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"{file.stem}-0000{number}-of-00002{file.suffix}"
        content = {name: state[name] for name in part}
        if is_safe:
            save_file(content, path / shard, {"format": "pt"})
        else:
            torch.save(content, path / shard)
        places |= dict.fromkeys(part, shard)
    index = path / f"{weights}.index.json"
    # No order of the tensors is promised.
    places = dict(reversed(places.items()))
    return write_json(index, {"metadata": {"total_size": 1}, "weight_map": places})


KINDS = {
    "open_clip folder, safetensors": "open_clip_model.safetensors",
    "transformers folder, safetensors": "model.safetensors",
    "transformers folder, bin": "pytorch_model.bin",
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_several_files_load(
    kind: str, clip: CLIP, tiny_clip_json: str, tmp_path: Path
) -> None:
    """By their folder or by their index, which has the checksum that sha256sum gives."""
    folder = FORMATS[kind](clip, tmp_path)
    index = sharded(folder, KINDS[kind])
    for pretrained in (folder, index):
        source = CLIPSource(tiny_clip_json, str(pretrained))
        state, expected = source.state_dict(), clip.state_dict()
        assert source.path == index and state.keys() == expected.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert read_clip_weights(folder).quick_gelu is True
    pattern = f"{index.name.partition('.')[0]}-*"
    command = f"sha256sum {pattern} | sha256sum"
    said = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True
    )
    assert source.sha256 == said.stdout.split()[0]


def test_the_checksum_of_several_files_follows_each(clip: CLIP, tmp_path: Path) -> None:
    folder = FORMATS["transformers folder, bin"](clip, tmp_path)
    index = sharded(folder, "pytorch_model.bin")
    before, shard = weights_sha256(index), folder / "pytorch_model-00002-of-00002.bin"
    torch.save(torch.load(shard, weights_only=True) | {"text_model.x": torch.ones(1)}, shard)
    assert weights_sha256(index) != before


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda places: places | {"x": "model-00003.safetensors"}, ["model-00003.safetensors"]),
        (lambda places: places | {"x": next(iter(places.values()))}, ["found no x, expected"]),
        (lambda places: places | {"x": "../model.safetensors"}, ["no file beside it"]),
        (lambda places: places | {"x": 3}, ["is no index of weights"]),
        (lambda places: [*places], ["is no index of weights"]),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    change: Callable, parts: list[str], clip: CLIP, tmp_path: Path
) -> None:
    folder = FORMATS["transformers folder, safetensors"](clip, tmp_path)
    index = sharded(folder, "model.safetensors")
    write_json(index, {"weight_map": change(json.loads(index.read_text())["weight_map"])})
    fails(CheckpointError, lambda: read_clip_weights(folder), folder, index.name, *parts)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_index_is_named(text: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    fails(CheckpointError, lambda: read_clip_weights(tmp_path), index, "weight_map")
