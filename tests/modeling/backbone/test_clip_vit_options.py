"""CLIPViT with every option of open_clip's own image towers: pools, scales, norms, tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from helpers.clip_files import random_clip, tiny_config, write_json
from helpers.tiny_run import changed
from helpers.tiny_vit import images, vision_state
from open_clip.model import CLIP, resize_pos_embed
from open_clip.transformer import VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn

from tagclip.modeling.backbone import CLIPViT, DeepPrompts
from tagclip.modeling.clip import CLIPSource

POOL = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 5}
ALL_PARTS = {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True,
             "scale_fc": True, "ls_init_value": 0.1}  # fmt: skip
TOWERS: dict[str, dict[str, Any]] = {
    "CLIPA": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
    "mean of normed tokens": {"pool_type": "avg"},
    "norm after a class token": {"final_ln_after_pool": True},
    "CoCa": POOL,
    "CoCa, width of the output": POOL | {"width": 32},
    "mean of queries": POOL | {"pool_type": "avg", "final_ln_after_pool": True},
    "ViT-M-16-alt": {"ls_init_value": 1e-4},
    "layers scaled by 0": {"ls_init_value": 0},
    "norm_kwargs": {"norm_kwargs": {"eps": 0.1}},
    "norms without weights": {"norm_kwargs": {"elementwise_affine": False}},
    "norms without bias": {"norm_kwargs": {"bias": False}},
    "act_kwargs": {"act_kwargs": {"approximate": "tanh"}},
    "fixed positions": {"pos_embed_type": "sin_cos_2d"},
    "qk_norm": {"qk_norm": True},
    "scale_heads": {"scale_heads": True},
    "scale_attn_inner": {"scale_attn_inner": True},
    "scale_attn": {"scale_attn": True},
    "scale_fc": {"scale_fc": True},
    "all of a custom block": ALL_PARTS | {"norm_kwargs": {"eps": 0.1}},
    "custom block as the default": {"block_type": "custom"},
    "parts that the default ignores": ALL_PARTS | {"block_type": "default"},
    "one number for a patch": {"patch_size": [16, 16]},
    "another shape": {"image_size": [64, 96], "pool_type": "avg"},
}


def config_of(**options: Any) -> dict[str, Any]:
    changes = {f"vision_{key}": value for key, value in options.items()}
    return tiny_config(quick_gelu="act_kwargs" not in options, **changes)


def build(model: CLIP, config: dict[str, Any], folder: Path, **options: Any) -> CLIPViT:
    source = CLIPSource(str(write_json(folder / "model.json", config)))
    options = {"state": vision_state(model), "double_cls_embed": False} | options
    return CLIPViT(**source.vision_config(), pos_embed_resize="bicubic", **options).eval()


@torch.no_grad()
def reference(
    visual: VisionTransformer, batch: Tensor, prompts: DeepPrompts | None = None
) -> tuple[Tensor, Tensor]:
    """Unit (N, D) image and (N, D, h, w) patch vectors by open_clip's modules in float64."""
    tokens = visual._embeds(batch.double())
    cls, patches = tokens[:, :1], tokens[:, 1:]
    for index, block in enumerate(visual.transformer.resblocks):
        inserted = patches[:, :0]
        if prompts is not None and index < prompts.depth:
            inserted = prompts.proj(prompts.tokens[index]).expand(len(patches), -1, -1)
        tokens = block(torch.cat([cls, inserted, patches], dim=1))
        cls, patches = tokens[:, :1], tokens[:, -patches.shape[1] :]
    tokens = torch.cat([cls, patches], dim=1)
    tokens = tokens if prompts is None else prompts.norm(tokens)
    pooled = visual._pool(tokens)[0] @ visual.proj
    patches = tokens[:, 1:]
    if visual.attn_pool is not None:
        # A query that sees one token reads its value.
        single = patches.flatten(0, 1)[:, None]
        patches = visual.attn_pool(single)[:, 0].unflatten(0, patches.shape[:2])
    dense = (visual.ln_post(patches) @ visual.proj).transpose(1, 2)
    dense = dense.unflatten(2, [side // 16 for side in batch.shape[2:]])
    return nn.functional.normalize(pooled, dim=1), nn.functional.normalize(dense, dim=1)


def assert_equal(found: dict[str, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for name, vectors in zip(("clip_global", "clip_dense"), expected, strict=True):
        assert found[name].shape == vectors.shape and found[name].dtype == torch.float32
        assert (found[name] - vectors).abs().max() < 1e-5, name


def of_size(model: CLIP, config: dict[str, Any], size: list[int]) -> CLIP:
    """The model as open_clip loads its weights for images of another size."""
    config = config | {"vision_cfg": config["vision_cfg"] | {"image_size": size}}
    other, state = CLIP(**config), dict(model.state_dict())
    resize_pos_embed(state, other)
    other.load_state_dict(state)
    return other.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_it_equals_encode_image_at_its_own_and_other_sizes(name: str, tmp_path: Path) -> None:
    config = config_of(**TOWERS[name])
    model = random_clip(config)
    vit = build(model, config, tmp_path)
    native, *others = [vit.grid_size, (3, 5), (6, 6)]
    batch = images(*native)
    expected = model.encode_image(batch, normalize=True)
    assert (vit(batch)["clip_global"] - expected).abs().max() < 1e-5
    # open_clip takes every table for a square one, and has a fixed one for squares only.
    others = others if native == (4, 4) else []
    for grid in [g for g in others if "pos_embed_type" not in TOWERS[name] or g[0] == g[1]]:
        batch = images(*grid)
        other = of_size(model, config, [16 * side for side in grid])
        expected = other.encode_image(batch, normalize=True)
        assert (vit(batch)["clip_global"] - expected).abs().max() < 1e-5
        assert_equal(vit(batch), reference(other.double().visual, batch))


@torch.no_grad()
def test_resized_positions_follow_their_table(tmp_path: Path) -> None:
    """They are kept from image to image, but not when other weights are loaded meanwhile."""
    config = config_of()
    model, batch = random_clip(config), images(3, 5)
    vit = build(model, config, tmp_path)
    vit(batch)
    for tower in (vit, model.visual):
        tower.positional_embedding.mul_(2)
    expected = of_size(model, config, [48, 80]).encode_image(batch, normalize=True)
    assert (vit(batch)["clip_global"] - expected).abs().max() < 1e-5


def make_prompts(width: int) -> DeepPrompts:
    torch.manual_seed(0)
    prompts = DeepPrompts(num_tokens=3, width=width, depth=3, patch_size=16, dropout=0.0)
    with torch.no_grad():
        for parameter in prompts.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return prompts


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_prompts_equal_the_formulas(name: str, tmp_path: Path) -> None:
    config = config_of(**TOWERS[name])
    model = random_clip(config)
    prompts = make_prompts(config["vision_cfg"]["width"])
    vit = build(model, config, tmp_path, prompts=prompts)
    batch = images(*vit.grid_size)
    found = vit(batch)
    assert_equal(found, reference(model.double().visual, batch, prompts.double()))


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_blocks_in_half_precision_are_near(name: str, tmp_path: Path) -> None:
    config = config_of(**TOWERS[name])
    model = random_clip(config)
    exact = build(model, config, tmp_path)
    half = build(model, config, tmp_path, inference_dtype=torch.bfloat16)
    batch = images(*exact.grid_size)
    expected, found, own = exact(batch), half(batch), half.for_inference()(batch)
    for key, vectors in expected.items():
        assert ((vectors * found[key]).sum(1) > 0.99).all(), key
        assert torch.equal(found[key], own[key]) and not torch.equal(found[key], vectors)


@pytest.mark.parametrize("name", ["CLIPA", "CoCa", "all of a custom block"])
def test_checkpointing_changes_neither_values_nor_gradients(
    name: str, tmp_path: Path, tiny_cfg: CfgNode
) -> None:
    config = config_of(**TOWERS[name])
    save_file(random_clip(config).state_dict(), tmp_path / "clip.safetensors")
    path = write_json(tmp_path / "model.json", config)
    places = ["MODEL.CLIP.NAME", str(path), "MODEL.CLIP.PRETRAINED", f"{tmp_path}/clip.safetensors"]
    results = []
    for use_checkpoint in (False, True):
        cfg = changed(tiny_cfg, *places, "MODEL.BACKBONE.CHECKPOINT", use_checkpoint)
        torch.manual_seed(3)
        vit = build_backbone(cfg).train()
        vectors = vit(images(3, 5))
        (vectors["clip_dense"][:, :3].sum() + vectors["clip_global"][:, 5].sum()).backward()
        gradients = {n: p.grad for n, p in vit.named_parameters() if p.requires_grad}
        assert all(g is not None and g.abs().sum() > 0 for g in gradients.values())
        results.append([*vectors.values(), *gradients.values()])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("name", [n for n in open_clip.list_models() if "CLIPA" in n
                                  or n in ("coca_base", "coca_ViT-B-32", "coca_ViT-L-14",
                                           "ViT-M-16-alt")])  # fmt: skip
def test_open_clips_models_fit(name: str) -> None:
    """Names and shapes only, of all layers."""
    from open_clip.model import _build_vision_tower

    from tagclip.modeling.clip.config import vision_sizes

    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        visual = _build_vision_tower(config["embed_dim"], config["vision_cfg"])
        vit = CLIPViT(**vision_sizes(config), state=visual.state_dict())
    assert vit.grid_size == visual.grid_size
    assert vit.blocks[0].attn.heads == visual.transformer.resblocks[0].attn.num_heads
    if visual.attn_pool is not None:
        assert vit.attn_pool.attn.num_heads == visual.attn_pool.attn.num_heads == 8
        assert len(vit.attn_pool.query) == 256
