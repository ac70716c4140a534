"""MODEL.CLIP.LAST_BLOCK: training-free dense vectors against their formulas in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.clip_files import random_clip, tiny_config
from helpers.naive_last_block import METHODS, naive_last_block
from helpers.naive_vit import (
    block as naive_block,
)
from helpers.naive_vit import (
    gelu,
    layer_norm,
    naive_positions,
    quick_gelu,
    to_float64,
)
from helpers.tiny_vit import SIZES, images, vision_state
from open_clip.model import CLIP

from tagclip.errors import ConfigError
from tagclip.modeling.backbone import CLIPViT, DeepPrompts
from tagclip.modeling.backbone.last_block import neighbourhood

GRIDS = [(4, 4), (3, 6), (7, 2), (1, 5)]


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return random_clip()


def make_vit(model: CLIP, method: str, **options: Any) -> CLIPViT:
    options = {"state": vision_state(model), "double_cls_embed": False} | options
    return CLIPViT(**SIZES | options, last_block=method).eval()


def naive_vectors(
    image: np.ndarray, p: dict[str, np.ndarray], method: str, activation: Any
) -> tuple[np.ndarray, np.ndarray]:
    """(D, h, w) unit vectors and (W, h, w) keys of one image (3, H, W)."""
    size = p["conv1.weight"].shape[-1]
    kernel = p["conv1.weight"].reshape(len(p["conv1.weight"]), -1)
    grid = image.shape[1] // size, image.shape[2] // size
    cut = image.reshape(3, grid[0], size, grid[1], size).transpose(1, 3, 0, 2, 4)
    patches = cut.reshape(grid[0] * grid[1], -1) @ kernel.T
    tokens = np.concatenate([p["class_embedding"][None], patches])
    tokens = tokens + naive_positions(p["positional_embedding"], (4, 4), grid, "bilinear")
    tokens = layer_norm(tokens, p["ln_pre.weight"], p["ln_pre.bias"], 1e-5)
    for index in range(3):
        tokens = naive_block(tokens, p, f"transformer.resblocks.{index}", 4, activation)
    patches, keys = naive_last_block(
        tokens, p, "transformer.resblocks.3",
        heads=4, activation=activation, method=method, grid=grid,
    )  # fmt: skip
    vectors = layer_norm(patches, p["ln_post.weight"], p["ln_post.bias"], 1e-5) @ p["proj"]
    vectors /= np.sqrt((vectors**2).sum(1, keepdims=True))
    return vectors.T.reshape(-1, *grid), keys.T.reshape(-1, *grid)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", [quick_gelu, gelu])
@pytest.mark.parametrize("grid", GRIDS)
def test_patches_equal_the_formulas(method: str, activation: Any, grid: tuple[int, int]) -> None:
    is_quick = activation is quick_gelu
    model = random_clip(tiny_config(quick_gelu=is_quick))
    batch = images(*grid)
    found = make_vit(model, method, quick_gelu=is_quick)(batch)
    state = to_float64(vision_state(model))
    for index, image in enumerate(batch):
        dense, keys = naive_vectors(image.double().numpy(), state, method, activation)
        assert np.abs(found["clip_dense"][index].double().numpy() - dense).max() < 1e-5
        assert np.abs(found["clip_keys"][index].double().numpy() - keys).max() < 1e-4


@torch.no_grad()
def test_every_method_differs_and_the_class_vector_stays_clips(clip: CLIP) -> None:
    batch = images(3, 6)
    plain = make_vit(clip, "clip")(batch)
    assert plain.keys() == {"clip_dense", "clip_global"}
    found = {method: make_vit(clip, method)(batch) for method in METHODS}
    dense = [plain["clip_dense"], *(features["clip_dense"] for features in found.values())]
    for index, one in enumerate(dense):
        assert all((one - other).abs().max() > 1e-3 for other in dense[:index])
    for features in found.values():
        assert (features["clip_global"] - plain["clip_global"]).abs().max() < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_shapes_are_those_that_are_told(clip: CLIP, method: str) -> None:
    vit = make_vit(clip, method)
    features, shapes = vit(images(3, 6)), vit.output_shape()
    assert features.keys() == shapes.keys()
    assert all(features[name].shape[1] == shape.channels for name, shape in shapes.items())
    assert {features[name].shape[2:] for name in ("clip_dense", "clip_keys")} == {(3, 6)}


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(clip: CLIP, method: str, dtype: torch.dtype) -> None:
    """The dense vectors of both lie as close to float64's as those of plain CLIP do."""
    errors = {}
    for name in ("clip", method):
        exact, half = (make_vit(clip, name, inference_dtype=d) for d in (torch.float32, dtype))
        found = half(images(3, 6))
        assert {vectors.dtype for vectors in found.values()} == {torch.float32}
        difference = found["clip_dense"] - exact(images(3, 6))["clip_dense"]
        errors[name] = difference.norm(dim=1).max().item()
        built = half.for_inference()(images(3, 6))
        assert torch.equal(built["clip_dense"], found["clip_dense"])
    assert 0 < errors[method] < 4 * errors["clip"]


@pytest.mark.parametrize("grid", GRIDS)
def test_the_window_is_a_gaussian_of_the_distance(grid: tuple[int, int]) -> None:
    found, patches = neighbourhood(grid), list(np.ndindex(*grid))
    for i, (y, x) in enumerate(patches):
        for j, (row, column) in enumerate(patches):
            expected = np.exp(-((y - row) ** 2 + (x - column) ** 2) / 50)
            assert found[i, j].item() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options",
    [
        {"pool_type": "avg"},
        {"pool_type": "avg", "final_ln_after_pool": True},
        {"attn_pooler_heads": 4, "attn_pooler_queries": 3},
        {"block_parts": ("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")},
    ],
)
def test_the_image_vector_of_other_towers_stays_clips(method: str, options: dict) -> None:
    torch.manual_seed(0)
    plain = CLIPViT(**SIZES, **options).eval()
    free = CLIPViT(**SIZES, **options, last_block=method).eval()
    free.load_state_dict(plain.state_dict())
    expected, found = plain(images(3, 6)), free(images(3, 6))
    assert (found["clip_global"] - expected["clip_global"]).abs().max() < 1e-6
    assert (found["clip_dense"] - expected["clip_dense"]).abs().max() > 1e-3
    assert found["clip_keys"].shape[1] == free.output_shape()["clip_keys"].channels


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_scales_of_the_last_block_are_those_of_its_output(clip: CLIP, method: str) -> None:
    """A factor of each channel after the projection is the same in the projection."""
    vits = [make_vit(clip, method, state=None, block_parts=("ls_init_value",)) for _ in range(2)]
    scaled, folded = vits
    generator = torch.Generator().manual_seed(0)
    for block in scaled.blocks:
        block.ls_1.gamma.copy_(torch.rand(64, generator=generator) + 0.5)
    folded.load_state_dict(scaled.state_dict())
    last = folded.blocks[-1]
    last.attn.proj.weight *= last.ls_1.gamma[:, None]
    last.attn.proj.bias *= last.ls_1.gamma
    last.ls_1.gamma.fill_(1)
    batch = images(3, 6)
    assert (scaled(batch)["clip_dense"] - folded(batch)["clip_dense"]).abs().max() < 1e-5


def test_a_batch_is_its_images(clip: CLIP) -> None:
    batch = images(3, 6, count=3)
    for method in METHODS:
        vit = make_vit(clip, method)
        with torch.no_grad():
            together, alone = vit(batch)["clip_dense"], [vit(image[None]) for image in batch]
        assert all(
            (together[index] - one["clip_dense"][0]).abs().max() < 1e-6
            for index, one in enumerate(alone)
        )


def test_what_does_not_fit_is_said(clip: CLIP) -> None:
    prompts = DeepPrompts(
        num_tokens=2, width=64, depth=4, patch_size=16, dropout=0.0, post_norm=True
    )
    message = r"LAST_BLOCK: found 'naclip' with learned prompts.*NUM_TOKENS 0"
    with pytest.raises(ConfigError, match=message) as error:
        make_vit(clip, "naclip", prompts=prompts)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="LAST_BLOCK: found 'naclop'"):
        make_vit(clip, "naclop")


@pytest.mark.parametrize("grid", GRIDS)
def test_plain_vectors_of_a_tower_with_prompts_are_those_of_maskclip(
    clip: CLIP, grid: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    prompts = DeepPrompts(num_tokens=3, width=64, depth=4, patch_size=16)
    options = {"state": vision_state(clip), "prompts": prompts, "double_cls_embed": True}
    tower = CLIPViT(**SIZES | options).eval()
    batch = images(*grid)
    expected = make_vit(clip, "maskclip")(batch)["clip_dense"]
    torch.testing.assert_close(tower.plain(batch), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(tower(batch)["clip_dense"], expected, atol=1e-3)
