"""Every text tower of open_clip: ids and vectors are its own, and no padding is cut that counts."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers.clip_files import write_json
from helpers.text_models import TEXTS, kind_of, save_text_model, save_tokenizer
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from tagclip import TextBank
from tagclip.modeling.clip import CLIPSource
from tagclip.modeling.clip.text_tower import TextTower

_VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
_HIDDEN = {"mt5": "d_model", "nllb": "d_model"}


def shallow(name: str) -> dict[str, Any]:
    """A model with a text tower of 2 layers and a small image tower."""
    config = open_clip.get_model_config(name)
    config["vision_cfg"] = dict(_VISION)
    if not config["text_cfg"].get("hf_model_name"):
        config["text_cfg"]["layers"] = 2
    if "multimodal_cfg" in config:
        config["multimodal_cfg"]["layers"] = 1
    return config


def save_model(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write a model as open_clip's ``local-dir:`` reads it, with the tokenizer that it wants."""
    config = copy.deepcopy(config)
    text = config["text_cfg"]
    folder.mkdir(parents=True, exist_ok=True)
    if text.get("hf_model_name"):
        save_text_model(kind_of(text["hf_tokenizer_name"]), folder)
    elif text.get("hf_tokenizer_name"):
        text["vocab_size"] = save_tokenizer(kind_of(text["hf_tokenizer_name"]), folder)
    write_json(folder / "open_clip_config.json", {"model_cfg": config})
    return config


def reference(config: dict[str, Any], folder: Path) -> nn.Module:
    """open_clip's own model, every parameter of which matters."""
    arguments = {k: v for k, v in config.items() if k != "custom_text"}
    text = arguments["text_cfg"] = dict(arguments["text_cfg"])
    is_custom = config.get("custom_text", False)
    if text.get("hf_model_name"):
        text |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
        is_custom = True
    kind = CoCa if "multimodal_cfg" in config else CustomTextCLIP if is_custom else CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(**arguments)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "token_embedding" not in name and "visual." not in name:
                    parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def sourced(model: nn.Module, folder: Path, tokenizer: str = "") -> CLIPSource:
    source = CLIPSource(f"local-dir:{folder}", tokenizer=tokenizer)
    source.state_dict = lambda: dict(model.state_dict())
    return source


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


@lru_cache
def outcome(text: str, folder: Path) -> tuple[float, float, bool]:
    """Compare a model with open_clip.

    Returns:
        The largest difference of a unit vector, that between a text without and with padding, and
        whether our tower leaves padding out.
    """
    config = save_model(json.loads(text), folder)
    model = reference(config, folder)
    is_transformer = "hf_model_name" in config["text_cfg"]
    source = sourced(model, folder, str(folder) if is_transformer else "")
    bank = TextBank(source=source, templates=["{}"], batch_size=3)
    theirs = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    pad, limit = source.tokenizer.pad_id, source.context_length
    rows = bank._token_ids(list(TEXTS))
    ours = torch.tensor([row + [pad] * (limit - len(row)) for row in rows])
    assert torch.equal(ours, theirs)
    with torch.no_grad():
        expected = model.encode_text(theirs, normalize=True)
        found = unit(bank._encode_texts(list(TEXTS)))
        tower = source.text_tower()
        cut = unit(tower(ours[:1, : len(rows[0])]))
        whole = unit(tower(ours[:1]))
    # One of padding is kept where it may be what is read.
    lengths = (len(rows[0]), len(rows[0]) + 1) if tower.truncates_exactly else (limit,)
    assert tower.length([rows[0]]) in lengths
    assert found.shape == (len(TEXTS), config["embed_dim"])
    # Texts are told apart.
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    differences = [(a - b).abs().max().item() for a, b in ((found, expected), (cut, whole))]
    return differences[0], differences[1], tower.truncates_exactly


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


# One to four seconds each; smaller ones of the same kind are quick.
HEAVY = ("EVA", "PE-Core-L", "PE-Core-bigG", "RN50x", "ViT-L-16", "ViT-SO400M", "ViT-bigG", "ViT-g",
         "ViT-e-14", "ViT-H-14-", "ViTamin-L", "ViTamin-XL", "coca_base", "coca_ViT-L",
         "convnext_l", "convnext_x")  # fmt: skip
NAMES = [
    # The worldwide tower alone is of its kind.
    pytest.param(name, marks=[pytest.mark.slow] * ("world" not in name and name.startswith(HEAVY)))
    for name in open_clip.list_models()
]


@pytest.mark.parametrize("name", NAMES)
def test_every_text_tower_is_open_clips(name: str, models: Path) -> None:
    """Where padding is left out, the vector is the same; where it is not, it would be another."""
    text = json.dumps(shallow(name), sort_keys=True)
    difference, cut, exact = outcome(text, models / str(abs(hash(text))))
    assert difference < 1e-5
    assert cut < 1e-6 if exact else cut > 1e-4
    causal = ("ViT-B-16", "MobileCLIP2-B", "PE-Core-B-16", "ViT-H-14-worldwide", "roberta-ViT-B-32")
    others = ("MobileCLIP2-S0", "ViT-B-16-SigLIP2", "ViT-L-14-CLIPA", "coca_ViT-B-32")
    assert name not in (others if exact else causal)


@pytest.mark.parametrize("pool", ["argmax", "eos"])
def test_padding_that_is_read_is_not_cut(pool: str) -> None:
    """Padding may have the largest id or that of the end: then the first of it is what is read, and
    the longest text has none of its own."""
    torch.manual_seed(0)
    tower = TextTransformer(
        context_length=12, vocab_size=50, width=16, heads=2, layers=2, output_dim=8,
        pool_type=pool, pad_id=49, eos_id=49,
    ).eval()  # fmt: skip
    rows = [[1, 5, 6, 7, 48], [1, 8, 48]]
    wrapped = TextTower(copy.deepcopy(tower), context_length=12, pad_id=49).eval()

    def padded(length: int) -> Tensor:
        return torch.tensor([row + [49] * (length - len(row)) for row in rows])

    with torch.no_grad():
        expected, found = tower(padded(12)), wrapped(padded(wrapped.length(rows)))
    assert torch.allclose(found, expected, atol=1e-6)
