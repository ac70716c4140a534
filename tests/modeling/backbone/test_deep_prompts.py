"""Deep prompts: what stands between class token and patches in every layer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.clip_files import random_clip
from helpers.naive_vit import NaivePrompts, naive_vit, to_float64
from helpers.tiny_vit import SIZES, vision_state
from open_clip.model import CLIP
from torch import Tensor

from tagclip.modeling.backbone import CLIPViT, DeepPrompts


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return random_clip()


def make_prompts(depth: int = 4, tokens: int = 3, **options: Any) -> DeepPrompts:
    """Prompts of which every parameter matters."""
    torch.manual_seed(depth)
    options = {"dropout": 0.0} | options
    prompts = DeepPrompts(num_tokens=tokens, width=64, depth=depth, patch_size=16, **options)
    with torch.no_grad():
        for parameter in prompts.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return prompts


def make_vit(clip: CLIP, prompts: DeepPrompts | None) -> CLIPViT:
    return CLIPViT(**SIZES, prompts=prompts, state=vision_state(clip))


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 48, 80, generator=torch.Generator().manual_seed(1))


def naive_prompts(prompts: DeepPrompts, post_norm: bool) -> NaivePrompts:
    p = to_float64(prompts.state_dict())
    norm = (p["norm.weight"], p["norm.bias"]) if post_norm else None
    return NaivePrompts(p["tokens"], p["proj.weight"], p["proj.bias"], norm)


@torch.no_grad()
@pytest.mark.parametrize("post_norm", [True, False])
@pytest.mark.parametrize("depth", [4, 3, 1])
def test_prompts_equal_the_formulas(clip: CLIP, depth: int, post_norm: bool) -> None:
    prompts = make_prompts(depth, post_norm=post_norm)
    found = make_vit(clip, prompts)(images())
    for index, image in enumerate(images()):
        cls, dense = naive_vit(
            image.double().numpy(),
            to_float64(clip.visual.state_dict()),
            heads=4,
            layers=4,
            old_grid=(4, 4),
            class_embeddings=2,
            prompts=naive_prompts(prompts, post_norm),
        )
        for name, expected in (("clip_global", cls), ("clip_dense", dense)):
            difference = found[name][index].double() - torch.from_numpy(expected)
            assert difference.abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("depth", "lengths"), [(4, [19] * 4), (2, [19, 19, 16, 16])])
def test_each_block_sees_its_own_prompts(clip: CLIP, depth: int, lengths: list[int]) -> None:
    prompts = make_prompts(depth)
    vit = make_vit(clip, prompts)
    inputs: list[Tensor] = []
    for block in vit.blocks:
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    vit(images())
    assert [tokens.shape[1] for tokens in inputs] == lengths
    for layer, tokens in enumerate(inputs[:depth]):
        expected = prompts.tokens[layer] @ prompts.proj.weight.T + prompts.proj.bias
        assert torch.allclose(tokens[:, 1:4], expected.expand(2, -1, -1), atol=1e-6)


def test_insert_keeps_the_class_token_first_and_the_patches_last() -> None:
    prompts = make_prompts(tokens=2)
    tokens = torch.arange(6.0)[None, :, None].expand(2, -1, 64)
    layer = torch.full((2, 64), 9.0)
    inserted = prompts.insert(tokens, layer, num_patches=3)
    assert inserted[0, :, 0].tolist() == [0, 9, 9, 3, 4, 5]
    assert prompts.insert(tokens, None, num_patches=3)[1, :, 5].tolist() == [0, 3, 4, 5]


def test_dropout_differs_between_images_and_is_off_at_test() -> None:
    prompts = make_prompts(tokens=50, dropout=0.1)
    tokens, layer = torch.zeros(2, 4, 64), torch.ones(50, 64)
    inserted = prompts.insert(tokens, layer, num_patches=3)[:, 1:51]
    assert not torch.equal(inserted[0], inserted[1])
    dropped = (inserted == 0).float().mean().item()
    assert 0.07 < dropped < 0.13
    assert torch.allclose(inserted[inserted != 0], torch.tensor(1 / 0.9))
    prompts.eval()
    assert torch.equal(prompts.insert(tokens, layer, num_patches=3)[:, 1:51].unique(), layer[0, :1])


def test_every_parameter_gets_a_gradient_and_clip_none(clip: CLIP) -> None:
    vit = make_vit(clip, make_prompts(dropout=0.1)).train()
    vectors = vit(images())
    weights = torch.randn(vectors["clip_dense"].shape)
    loss = (vectors["clip_dense"] * weights).sum() + vectors["clip_global"][:, 0].sum()
    loss.backward()
    for name, parameter in vit.named_parameters():
        if name.startswith("prompts."):
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def test_initial_values() -> None:
    """Uniform tokens within the bound, Kaiming (fan out) projection, eps of the norm."""
    torch.manual_seed(0)
    prompts = DeepPrompts(num_tokens=10, width=64, depth=4, patch_size=16)
    bound = math.sqrt(6 / (3 * 16 * 16 + 64))
    assert 0.95 * bound < prompts.tokens.abs().max() <= bound
    assert prompts.tokens.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert prompts.proj.weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    assert prompts.norm.eps == 1e-6
    assert prompts.dropout.p == 0.1
    assert prompts.depth == 4
