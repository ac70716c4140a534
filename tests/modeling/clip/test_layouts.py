"""Weights under other names than open_clip's: SigLIP of transformers is read, others say where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from helpers.clip_files import fails, write_json
from open_clip.transformer import TextTransformer
from safetensors.torch import save_file
from torch import nn

from tagclip.errors import CheckpointError
from tagclip.modeling.clip import read_clip_weights
from tagclip.modeling.clip.weights import find_weight_file

WIDTH, SIZES = 32, {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                    "num_attention_heads": 2}  # fmt: skip


def siglip() -> nn.Module:
    """A tiny SigLIP of transformers in which every parameter matters."""
    transformers = pytest.importorskip("transformers")
    vision = SIZES | {"image_size": 32, "patch_size": 16, "hidden_act": "gelu"}
    text = SIZES | {"vocab_size": 99, "max_position_embeddings": 8, "hidden_act": "gelu",
                    "projection_size": 32}  # fmt: skip
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.SiglipModel(config).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
def test_siglip_of_transformers_is_read(tmp_path: Path) -> None:
    from timm.models.vision_transformer import VisionTransformer

    model = siglip()
    model.save_pretrained(tmp_path)
    weights = read_clip_weights(tmp_path)
    assert weights.quick_gelu is False
    state = weights.state
    trunk = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=WIDTH, depth=2, num_heads=2, mlp_ratio=2,
        class_token=False, global_pool="map", num_classes=0, norm_layer=_norm,
    ).eval()  # fmt: skip
    trunk.load_state_dict({k.removeprefix("visual.trunk."): state.pop(k) for k in list(state)
                           if k.startswith("visual.")})  # fmt: skip
    text = TextTransformer(
        context_length=8, vocab_size=99, width=WIDTH, heads=2, layers=2, mlp_ratio=2,
        output_dim=WIDTH, no_causal_mask=True, pool_type="last", proj_bias=True, norm_layer=_norm,
    ).eval()  # fmt: skip
    text.load_state_dict({k.removeprefix("text."): state.pop(k) for k in list(state)
                          if k.startswith("text.")})  # fmt: skip
    assert state.keys() == {"logit_scale", "logit_bias"}
    image, ids = torch.randn(2, 3, 32, 32), torch.randint(0, 99, (2, 8))
    expected = model.get_image_features(image), model.get_text_features(ids)
    for found, wanted in zip((trunk(image), text(ids)), expected, strict=True):
        wanted = getattr(wanted, "pooler_output", wanted)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def _norm(width: int, **kwargs: object) -> nn.Module:
    return nn.LayerNorm(width, eps=1e-6)


@pytest.mark.parametrize(("acts", "quick"), [({}, False), ({"hidden_act": "quick_gelu"}, True)])
def test_what_a_config_of_siglip_leaves_out_is_gelu(
    acts: dict, quick: bool, tmp_path: Path
) -> None:
    model = siglip()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    towers = {"vision_config": acts, "text_config": acts}
    write_json(tmp_path / "config.json", {"model_type": "siglip"} | towers)
    assert read_clip_weights(tmp_path).quick_gelu is quick


FOREIGN = {
    "image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight": "NAME MobileCLIP-S1",
    "image_encoder.model.patch_emb.0.block.conv.weight": "NAME MobileCLIP-B",
    "visual.attn_pool.probe": "NAME PE-Core-B-16",
    "visual.cls_token": "NAME EVA02-B-16",
}


@pytest.mark.parametrize(("tensor", "place"), FOREIGN.items())
def test_other_layouts_say_where_the_same_weights_are(
    tensor: str, place: str, tmp_path: Path
) -> None:
    path = tmp_path / "theirs.pt"
    others = {"text.token_embedding.weight": torch.zeros(2), "logit_scale": torch.zeros(())}
    torch.save({tensor: torch.zeros(2)} | others, path)
    fails(CheckpointError, lambda: read_clip_weights(path), path, tensor, "expected", place)
    name = place.removeprefix("NAME ")
    assert name in open_clip.list_models() and open_clip.list_pretrained_tags_by_model(name)


def test_siglip_for_images_of_any_shape_is_refused(tmp_path: Path) -> None:
    state = dict(siglip().state_dict())
    key = "vision_model.embeddings.patch_embedding.weight"
    state[key] = state[key].flatten(1)
    save_file(state, tmp_path / "a.safetensors")
    fails(CheckpointError, lambda: read_clip_weights(tmp_path / "a.safetensors"), "NaFlex", "webli")


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_arrays_of_big_vision_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"siglip{suffix}"
    if suffix == ".npz":
        np.savez(path, **{"params/b": np.zeros(1)})
    else:
        np.save(path, np.zeros(1))
    fails(CheckpointError, lambda: read_clip_weights(path), path, "big_vision", "ViT-B-16-SigLIP2")


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pth"])
def test_every_name_of_open_clip_is_found_in_a_folder(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"open_clip_pytorch_model.{suffix}"
    path.touch()
    assert find_weight_file(tmp_path) == path
