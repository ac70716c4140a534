"""CLIP weights of every format load alike, and only with their own activation."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from helpers.clip_files import (
    FORMATS,
    fails,
    random_clip,
    registered,
    save_archive,
    sha256,
    tiny_config,
    write_json,
)
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file

from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.clip import CLIPSource, read_clip_weights
from tagclip.modeling.clip.weights import file_sha256


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return random_clip()


@pytest.fixture(scope="module")
def weights(clip: CLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary weight file."""
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_file(dict(clip.state_dict()), path)
    return path


@pytest.fixture(scope="module")
def archive(clip: CLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript archive."""
    path = tmp_path_factory.mktemp("archive") / "clip.pt"
    save_archive(clip, path)
    return path


@pytest.fixture(scope="module")
def gelu_json(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with the other activation."""
    folder = tmp_path_factory.mktemp("gelu")
    return str(write_json(folder / "gelu.json", tiny_config(quick_gelu=False)))


# Formats


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_tensors(
    kind: str, clip: CLIP, tiny_clip_json: str, tmp_path: Path
) -> None:
    path = FORMATS[kind](clip, tmp_path)
    pin = sha256(path) if "Script" in kind else ""
    source = CLIPSource(tiny_clip_json, str(path), sha256=pin)
    state = source.state_dict()
    expected = clip.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], tensor), name
    file = source.path
    assert file.is_file() and source.sha256 == sha256(file)


def test_an_archive_is_read_as_torch_reads_it(archive: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(archive).state_dict()
    del expected["attn_mask"]
    weights = read_clip_weights(archive, confirmed_sha256=sha256(archive))
    assert weights.quick_gelu is True
    assert weights.state.keys() == expected.keys()
    assert all(torch.equal(weights.state[name], t.float()) for name, t in expected.items())


def test_a_file_in_a_folder_may_be_named_itself(clip: CLIP, gelu_json: str, tmp_path: Path) -> None:
    folder = FORMATS["transformers folder, safetensors"](clip, tmp_path)
    source = CLIPSource(gelu_json, str(folder / "model.safetensors"))
    fails(ConfigError, source.state_dict, "QuickGELU", gelu_json)


def test_random_weights_repeat_and_leave_the_generator_alone(tiny_clip_json: str) -> None:
    torch.manual_seed(5)
    first = CLIPSource(tiny_clip_json).state_dict()
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
    second = CLIPSource(tiny_clip_json).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert CLIPSource(tiny_clip_json).path is None


# Activation


@pytest.mark.parametrize(
    "kind",
    [
        "OpenAI TorchScript archive",
        "OpenAI state dict",
        "open_clip folder, safetensors",
        "transformers folder, bin",
    ],
)
def test_quick_gelu_weights_need_a_quick_gelu_model(
    kind: str, clip: CLIP, gelu_json: str, tmp_path: Path
) -> None:
    path = FORMATS[kind](clip, tmp_path)
    pin = sha256(path) if path.is_file() else ""
    source = CLIPSource(gelu_json, str(path), sha256=pin)
    fails(ConfigError, source.state_dict, gelu_json, "QuickGELU", '"quick_gelu": true')


@pytest.mark.parametrize("config", ["open_clip_config.json", "config.json"])
def test_gelu_weights_are_refused_by_a_quick_gelu_model(
    config: str, clip: CLIP, tiny_clip_json: str, tmp_path: Path
) -> None:
    kind = "open_clip" if config.startswith("open") else "transformers"
    folder = FORMATS[f"{kind} folder, safetensors"](clip, tmp_path)
    towers = {"vision_config": {"hidden_act": "gelu"}, "text_config": {"hidden_act": "gelu"}}
    content = {"model_cfg": {"embed_dim": 32}} if kind == "open_clip" else towers
    write_json(folder / config, content)
    source = CLIPSource(tiny_clip_json, str(folder))
    fails(ConfigError, source.state_dict, folder, "without QuickGELU", '"quick_gelu": false')


@pytest.mark.parametrize(
    "content", ['{"vision_config": {"hidden_act": "relu"}}', "{", "[]", '{"vision_config": 3}']
)
def test_an_unclear_activation_is_refused(
    content: str, clip: CLIP, tiny_clip_json: str, tmp_path: Path
) -> None:
    folder = FORMATS["transformers folder, safetensors"](clip, tmp_path)
    (folder / "config.json").write_text(content)
    source = CLIPSource(tiny_clip_json, str(folder))
    fails(CheckpointError, source.state_dict, folder / "config.json", "activation")


# Checksums


def test_the_checksum_is_compared(weights: Path, tiny_clip_json: str) -> None:
    found = sha256(weights)
    assert CLIPSource(tiny_clip_json, str(weights), sha256=found.upper()).state_dict()
    source = CLIPSource(tiny_clip_json, str(weights), sha256="ab" * 32)
    fails(CheckpointError, source.state_dict, weights, found, "ab" * 32, "MODEL.CLIP.SHA256")


def test_the_checksum_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    assert file_sha256(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"another")
    assert file_sha256(path) == hashlib.sha256(b"another").hexdigest()


# The text tower


@pytest.mark.parametrize("custom", [False, True])
def test_the_text_tower_holds_the_weights(clip: CLIP, custom: bool, tmp_path: Path) -> None:
    config = tiny_config(custom_text=custom)
    path = write_json(tmp_path / "model.json", config)
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    state = torch.get_rng_state()
    tower = CLIPSource(str(path), str(tmp_path / "clip.pt")).text_tower()
    assert torch.equal(torch.get_rng_state(), state), "a training goes on as if it were not built"
    assert not tower.training
    assert not any(p.requires_grad for p in tower.parameters())
    assert torch.equal(tower.tower.ln_final.weight, clip.ln_final.weight)
    assert torch.equal(tower.tower.token_embedding.weight, clip.token_embedding.weight)
    assert not any(t.is_meta for t in [*tower.parameters(), *tower.buffers()])


def test_a_custom_text_model_reads_its_own_names(tmp_path: Path) -> None:
    config = tiny_config(custom_text=True)
    path = write_json(tmp_path / "model.json", config)
    del config["custom_text"]
    model = CustomTextCLIP(**config)
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    tower = CLIPSource(str(path), str(tmp_path / "clip.pt")).text_tower()
    assert torch.equal(tower.tower.text_projection, model.text.text_projection)


def test_tokens_are_open_clips(tiny_clip_json: str) -> None:
    texts = ["a photo of a Cat", "wall-concrete", "100% {}", "naïve café"]
    padded = open_clip.SimpleTokenizer()(texts)
    rows = CLIPSource(tiny_clip_json).tokenize(texts)
    for row, expected in zip(rows, padded, strict=True):
        assert row == expected[: len(row)].tolist()
        assert not expected[len(row) :].any()


def test_a_json_of_open_clip_loads(tmp_path: Path) -> None:
    """A model json is what open_clip itself understands."""
    path = tmp_path / "tiny-for-test.json"
    path.write_text(json.dumps(tiny_config()))
    with registered(path):
        model = open_clip.create_model("tiny-for-test", pretrained=None)
        named, given = CLIPSource("tiny-for-test"), CLIPSource(str(path))
        assert named.vision_config() == given.vision_config()
        assert named.state_dict().keys() == model.state_dict().keys()
    assert "tiny-for-test" not in open_clip.list_models()
