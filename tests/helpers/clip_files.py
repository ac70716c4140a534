"""Random tiny CLIPs of open_clip, and their weights in every format that is read."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor

from tagclip import Vocabulary
from tagclip.structures.vocabulary_class import ClassEntry

State = Mapping[str, Tensor]

TINY_CLIP = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 64,
        "layers": 4,
        "width": 64,
        "head_width": 16,
        "patch_size": 16,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """`TINY_CLIP` with other top-level, ``vision_`` or ``text_`` options."""
    config = copy.deepcopy(TINY_CLIP)
    for key, value in changes.items():
        part, _, option = key.partition("_")
        if part in ("vision", "text"):
            config[f"{part}_cfg"][option] = value
        else:
            config[key] = value
    return config


@contextmanager
def registered(model_json: Path) -> Iterator[None]:
    """Let open_clip know a model by the name of its json, for a while."""
    paths, configs = list(factory._MODEL_CONFIG_PATHS), dict(factory._MODEL_CONFIGS)
    open_clip.add_model_config(model_json)
    try:
        yield
    finally:
        factory._MODEL_CONFIG_PATHS[:], factory._MODEL_CONFIGS = paths, configs


def random_clip(config: Mapping[str, Any] = TINY_CLIP, seed: int = 0) -> CLIP:
    """Build a CLIP in which every parameter matters, with values that float16 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = CLIP(**config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "ln_" in name:
                noise = noise * 0.3 + (1 if name.endswith("weight") else 0)
            elif parameter.ndim == 2 and "embedding" not in name:
                noise *= parameter.shape[1] ** -0.5
            parameter.copy_(noise.half())
    return model.eval()


def sha256(path: Path) -> str:
    """Checksum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fails(error: type[Exception], action: Callable[[], object], *parts: object) -> None:
    """Expect an error of one line that names all parts."""
    with pytest.raises(error) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def write_json(path: Path, content: Any) -> Path:
    """Write json and return its path."""
    path.write_text(json.dumps(content))
    return path


def class_list(*classes: list[str]) -> Vocabulary:
    """Build a vocabulary whose classes have these prompt names."""
    entries = (ClassEntry(i, names[0], prompts=tuple(names)) for i, names in enumerate(classes))
    return Vocabulary("test", tuple(entries))


def save_archive(model: CLIP, path: Path) -> None:
    """Write a TorchScript archive as OpenAI's: float16, causal masks as attributes of blocks."""
    model = copy.deepcopy(model)
    for block in model.transformer.resblocks:
        block.attn_mask = torch.zeros(3, 3)
    size = model.visual.image_size
    inputs = torch.zeros(1, 3, *size), torch.zeros(1, model.context_length, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, inputs, check_trace=False)
        torch.jit.save(traced.half(), path)


def transformers_state(state: State, layers: Mapping[str, int]) -> dict[str, Tensor]:
    """The tensors of a CLIP under the names of transformers' ``CLIPModel``."""
    plain = {
        "logit_scale": "logit_scale",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
        "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
        "vision_model.post_layernorm.weight": "visual.ln_post.weight",
        "vision_model.post_layernorm.bias": "visual.ln_post.bias",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    renamed = {theirs: state[ours] for theirs, ours in plain.items()}
    renamed["visual_projection.weight"] = state["visual.proj"].T
    renamed["text_projection.weight"] = state["text_projection"].T
    for tower, prefix in (("vision", "visual."), ("text", "")):
        for index in range(layers[tower]):
            old = f"{prefix}transformer.resblocks.{index}"
            new = f"{tower}_model.encoder.layers.{index}"
            for kind in ("weight", "bias"):
                parts = state[f"{old}.attn.in_proj_{kind}"].chunk(3)
                for letter, part in zip("qkv", parts, strict=True):
                    renamed[f"{new}.self_attn.{letter}_proj.{kind}"] = part
                renamed[f"{new}.self_attn.out_proj.{kind}"] = state[f"{old}.attn.out_proj.{kind}"]
                renamed[f"{new}.layer_norm1.{kind}"] = state[f"{old}.ln_1.{kind}"]
                renamed[f"{new}.layer_norm2.{kind}"] = state[f"{old}.ln_2.{kind}"]
                renamed[f"{new}.mlp.fc1.{kind}"] = state[f"{old}.mlp.c_fc.{kind}"]
                renamed[f"{new}.mlp.fc2.{kind}"] = state[f"{old}.mlp.c_proj.{kind}"]
    renamed["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return {name: tensor.contiguous().clone() for name, tensor in renamed.items()}


def _openai_state(model: CLIP) -> dict[str, Tensor]:
    sizes = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}
    return dict(model.state_dict()) | {name: torch.tensor(n) for name, n in sizes.items()}


def _folder(path: Path, config: str, content: Any) -> Path:
    path.mkdir()
    write_json(path / config, content)
    return path


def _open_clip_folder(model: CLIP, folder: Path, file: str) -> Path:
    path = _folder(folder / "hub", "open_clip_config.json", {"model_cfg": TINY_CLIP})
    state = dict(model.state_dict())
    if file.endswith(".bin"):
        torch.save(state, path / file)
    else:
        save_file(state, path / file)
    return path


def _transformers_folder(model: CLIP, folder: Path, file: str) -> Path:
    towers = {"vision_config": {"hidden_act": "quick_gelu"}, "text_config": {}}
    path = _folder(folder / "hub", "config.json", {"model_type": "clip"} | towers)
    state = transformers_state(model.state_dict(), {"vision": 4, "text": 2})
    if file.endswith(".bin"):
        torch.save(state, path / file)
    else:
        save_file(state, path / file)
    return path


def _torch_file(name: str, content: Callable[[CLIP], Any]) -> Callable[[CLIP, Path], Path]:
    def write(model: CLIP, folder: Path) -> Path:
        torch.save(content(model), folder / name)
        return folder / name

    return write


def _safetensors(model: CLIP, folder: Path) -> Path:
    save_file(dict(model.state_dict()), folder / "clip.safetensors")
    return folder / "clip.safetensors"


def _half_safetensors(model: CLIP, folder: Path) -> Path:
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "clip.safetensors")
    return folder / "clip.safetensors"


def _archive(model: CLIP, folder: Path) -> Path:
    save_archive(model, folder / "clip.pt")
    return folder / "clip.pt"


def _training_checkpoint(model: CLIP) -> dict[str, Any]:
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    return {"epoch": 3, "name": "run", "state_dict": state}


# Format -> function of a model and a folder that writes it and returns what PRETRAINED names.
FORMATS: dict[str, Callable[[CLIP, Path], Path]] = {
    "open_clip .pt": _torch_file("clip.pt", lambda model: model.state_dict()),
    "open_clip .bin": _torch_file("clip.bin", lambda model: model.state_dict()),
    "open_clip training checkpoint": _torch_file("epoch_3.pt", _training_checkpoint),
    "open_clip .safetensors": _safetensors,
    "half precision": _half_safetensors,
    "OpenAI state dict": _torch_file("clip.pt", _openai_state),
    "OpenAI TorchScript archive": _archive,
    "open_clip folder, safetensors": lambda model, folder: _open_clip_folder(
        model, folder, "open_clip_model.safetensors"
    ),
    "open_clip folder, bin": lambda model, folder: _open_clip_folder(
        model, folder, "open_clip_pytorch_model.bin"
    ),
    "transformers folder, safetensors": lambda model, folder: _transformers_folder(
        model, folder, "model.safetensors"
    ),
    "transformers folder, bin": lambda model, folder: _transformers_folder(
        model, folder, "pytorch_model.bin"
    ),
}
