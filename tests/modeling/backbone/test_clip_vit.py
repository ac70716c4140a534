"""CLIPViT without prompts is CLIP: open_clip's own tower, and the formulas in float64."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from helpers.clip_files import random_clip, tiny_config, write_json
from helpers.naive_vit import gelu, naive_positions, naive_vit, quick_gelu, to_float64
from helpers.tiny_vit import SIZES, images, vision_state
from open_clip.model import CLIP
from torch import Tensor, nn

from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.backbone import CLIPViT
from tagclip.modeling.clip import CLIPSource


def make_vit(model: CLIP, **options: Any) -> CLIPViT:
    return CLIPViT(**SIZES | {"state": vision_state(model), "double_cls_embed": False} | options)


def open_clip_vectors(visual: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Unit (N, D) class and (N, D, h, w) patch vectors from open_clip's own modules."""
    tokens = []
    handle = visual.transformer.register_forward_hook(lambda *args: tokens.append(args[-1]))
    cls = visual(batch)
    handle.remove()
    patches = visual.ln_post(tokens[0])[:, 1:] @ visual.proj
    size = [side // visual.conv1.kernel_size[0] for side in batch.shape[2:]]
    dense = patches.transpose(1, 2).unflatten(2, size)
    return nn.functional.normalize(cls, dim=1), nn.functional.normalize(dense, dim=1)


def largest(found: Tensor, expected: Tensor | np.ndarray) -> float:
    return (found.double() - torch.as_tensor(expected).double()).abs().max().item()


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return random_clip()


@torch.no_grad()
@pytest.mark.parametrize("activation", [True, False])
def test_it_equals_open_clip_at_the_native_grid(activation: bool) -> None:
    model = random_clip(tiny_config(quick_gelu=activation))
    batch = images(4, 4, count=3)
    cls, dense = open_clip_vectors(model.visual, batch)
    found = make_vit(model, quick_gelu=activation)(batch)
    assert found["clip_dense"].shape == (3, 32, 4, 4)
    assert largest(found["clip_global"], cls) < 1e-5
    assert largest(found["clip_dense"], dense) < 1e-5
    other = make_vit(model, quick_gelu=not activation)(batch)
    assert largest(other["clip_global"], cls) > 1e-3


@torch.no_grad()
def test_a_tower_without_ln_pre_equals_open_clip() -> None:
    config = tiny_config(vision_no_ln_pre=True)
    model = random_clip(config)
    cls, dense = open_clip_vectors(model.visual, images(4, 4))
    found = make_vit(model, ln_pre=False)(images(4, 4))
    assert largest(found["clip_global"], cls) < 1e-5
    assert largest(found["clip_dense"], dense) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("grid", [(4, 4), (7, 7), (2, 2), (3, 6), (1, 9), (5, 1), (1, 1)])
def test_any_grid_equals_the_formulas(clip: CLIP, mode: str, grid: tuple[int, int]) -> None:
    batch = images(*grid, count=1)
    cls, dense = naive_vit(
        batch[0].double().numpy(),
        to_float64(vision_state(clip)),
        heads=4,
        layers=4,
        old_grid=(4, 4),
        mode=mode,
    )
    found = make_vit(clip, pos_embed_resize=mode)(batch)
    assert largest(found["clip_global"][0], cls) < 1e-5
    assert largest(found["clip_dense"][0], dense) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("activation", [quick_gelu, gelu])
@pytest.mark.parametrize("double", [False, True])
def test_the_class_embedding_may_count_twice(clip: CLIP, double: bool, activation: Any) -> None:
    batch = images(4, 5)
    found = make_vit(clip, double_cls_embed=double, quick_gelu=activation is quick_gelu)(batch)
    for index, image in enumerate(batch):
        cls, dense = naive_vit(
            image.double().numpy(),
            to_float64(vision_state(clip)),
            heads=4,
            layers=4,
            old_grid=(4, 4),
            activation=activation,
            class_embeddings=2 if double else 1,
        )
        assert largest(found["clip_global"][index], cls) < 1e-5
        assert largest(found["clip_dense"][index], dense) < 1e-5


@torch.no_grad()
def test_the_vectors_are_float32_unit_vectors_under_autocast(clip: CLIP) -> None:
    vit, batch = make_vit(clip), images(4, 4)
    expected = vit(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = vit(batch)
    for name, vectors in found.items():
        assert vectors.dtype == torch.float32
        assert largest(vectors.norm(dim=1), torch.ones(())) < 1e-6
        assert 0 < largest(vectors, expected[name]) < 0.1


@torch.no_grad()
def test_images_of_other_sizes_in_turn_do_not_disturb_each_other(clip: CLIP) -> None:
    vit = make_vit(clip)
    sizes = [(3, 5), (4, 4), (5, 3), (3, 5), (4, 4)]
    for size in sizes:
        fresh = make_vit(clip)(images(*size))
        assert torch.equal(vit(images(*size))["clip_dense"], fresh["clip_dense"])


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(clip: CLIP) -> None:
    vit, batch = make_vit(clip), images(4, 4, count=4)
    together = vit(batch)["clip_dense"]
    assert largest(together[2:3], vit(batch[2:3])["clip_dense"]) < 1e-6


# Position tables of another grid


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_position_table_of_another_grid_is_resized(
    mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    larger = random_clip(tiny_config(vision_image_size=96))
    torch.save(larger.state_dict(), tmp_path / "clip.pt")
    name = str(write_json(tmp_path / "model.json", tiny_config()))
    source = CLIPSource(name, str(tmp_path / "clip.pt"))
    with caplog.at_level(logging.INFO, logger="tagclip"):
        vit = CLIPViT(**source.vision_config(), state=source.vision_state(), pos_embed_resize=mode)
    assert "6x6 is resized to 4x4" in caplog.text
    table = larger.visual.positional_embedding.detach().double().numpy()
    expected = naive_positions(table, (6, 6), (4, 4), mode)
    assert largest(vit.positional_embedding, expected) < 1e-6
    assert torch.equal(vit.positional_embedding[0], larger.visual.positional_embedding[0])


@pytest.mark.parametrize("shape", [(14, 64), (0, 64), (), (2,), (17,), (1, 17, 64)])
def test_a_table_of_no_square_grid_is_refused(clip: CLIP, shape: tuple[int, ...]) -> None:
    state = vision_state(clip) | {"positional_embedding": torch.zeros(shape)}
    found = rf"a\.pt: .*{re.escape(str(shape))} instead of \(17, 64\)"
    with pytest.raises(CheckpointError, match=found):
        make_vit(clip, state=state, weights_path="a.pt")


# Training


def test_only_prompts_are_trained(tiny_cfg: CfgNode) -> None:
    vit = build_backbone(tiny_cfg)
    trained = {name for name, p in vit.named_parameters() if p.requires_grad}
    prompts = {"tokens", "proj.weight", "proj.bias", "norm.weight", "norm.bias"}
    assert trained == {f"prompts.{name}" for name in prompts}
    tiny_cfg.MODEL.CLIP.PROMPT.NUM_TOKENS = 0
    assert not any(p.requires_grad for p in build_backbone(tiny_cfg).parameters())


def test_checkpointing_changes_neither_values_nor_gradients(tiny_cfg: CfgNode) -> None:
    results = []
    for use_checkpoint in (False, True):
        tiny_cfg.MODEL.BACKBONE.CHECKPOINT = use_checkpoint
        torch.manual_seed(3)
        vit = build_backbone(tiny_cfg).train()
        calls = []
        for block in vit.blocks:
            block.register_forward_pre_hook(lambda *args, calls=calls: calls.append(1))
        torch.manual_seed(4)
        vectors = vit(images(3, 5))
        weights = torch.randn(vectors["clip_dense"].shape)
        (vectors["clip_dense"] * weights).sum().backward()
        assert len(calls) == (8 if use_checkpoint else 4)
        results.append([vectors["clip_dense"], vectors["clip_global"]])
        results[-1] += [p.grad for p in vit.parameters() if p.requires_grad]
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


# Building


def test_the_log_names_file_and_checksum(
    clip: CLIP, tiny_cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "clip.pt"
    torch.save(clip.state_dict(), path)
    tiny_cfg.MODEL.CLIP.PRETRAINED = str(path)
    with caplog.at_level(logging.INFO, logger="tagclip"):
        vit = build_backbone(tiny_cfg)
    assert f"QuickGELU: {path}, sha256 {vit.weights_sha256}" in caplog.text
    assert len(vit.weights_sha256) == 64


def test_wrong_options_are_refused(clip: CLIP, tiny_cfg: CfgNode) -> None:
    with pytest.raises(ConfigError, match="POS_EMBED_RESIZE.*'nearest'"):
        make_vit(clip, pos_embed_resize="nearest")
    tiny_cfg.MODEL.CLIP.PROMPT.DEPTH = 5
    with pytest.raises(ConfigError, match=r"PROMPT\.DEPTH: found 5, expected 0 to 4"):
        build_backbone(tiny_cfg)


def small_text(name: str) -> dict[str, Any]:
    """The config of an open_clip model with its own vision and a tiny text tower."""
    config = open_clip.get_model_config(name)
    config["text_cfg"] = config["text_cfg"] | {"width": 16, "heads": 2, "layers": 1}
    return config


@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-16-quickgelu",
        "ViT-B-32",
        "ViT-L-14",
        "ViT-L-14-336-quickgelu",
        "ViT-H-14",
        "ViT-H-14-378",
        "ViT-g-14",
        "ViT-bigG-14",
    ],
)
def test_open_clips_models_fit(name: str) -> None:
    """Names and shapes only: on the meta device nothing has memory."""
    with torch.device("meta"):
        model = CLIP(**small_text(name))
        vit = CLIPViT(**CLIPSource(name).vision_config(), state=vision_state(model))
    assert vit.grid_size == model.visual.grid_size
    # No shape tells the number of heads.
    assert vit.blocks[0].attn.heads == model.visual.transformer.resblocks[0].attn.num_heads
    assert vit.output_shape()["clip_dense"].channels == model.visual.output_dim
    assert vit.size_divisibility == model.visual.patch_size[0]


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-16-quickgelu",
        "ViT-B-32",
        pytest.param("ViT-L-14-quickgelu", marks=pytest.mark.slow),
        pytest.param("ViT-L-14-336", marks=pytest.mark.slow),
        pytest.param("ViT-H-14", marks=pytest.mark.slow),
    ],
)
def test_open_clips_models_run(name: str) -> None:
    model = CLIP(**small_text(name)).eval()
    sizes = CLIPSource(name).vision_config()
    vit = CLIPViT(**sizes, state=vision_state(model), double_cls_embed=False).eval()
    batch = images(*sizes["grid_size"], count=1, patch=sizes["patch_size"])
    cls, dense = open_clip_vectors(model.visual, batch)
    found = vit(batch)
    assert largest(found["clip_global"], cls) < 1e-5
    assert largest(found["clip_dense"], dense) < 1e-5
