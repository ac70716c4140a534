"""CLIPTimm is open_clip's image tower on timm, with a vector for every patch or position."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from helpers.clip_files import write_json
from helpers.naive_last_block import METHODS, naive_mix
from helpers.small_towers import TINY_TEXT, few_blocks, random_image_tower, randomize, small_config
from open_clip.timm_model import TimmModel
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.nn import functional as F

from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.backbone import CLIPTimm, CLIPViT, DeepPrompts
from tagclip.modeling.clip import CLIPSource

# One of each kind: its stride, and whether it ends in tokens.
KINDS = {
    "EVA02-B-16": (16, True),  # class token, rotary, SwiGLU
    "EVA01-g-14": (14, True),  # class token, no rotary
    "PE-Core-T-16-384": (16, True),  # class token inside map pooling, rotary
    "ViT-B-32-SigLIP2-256": (32, True),  # map pooling, no class token
    "vit_medium_patch16_gap_256": (16, True),  # mean of tokens
    "MobileCLIP2-B": (16, True),  # convolutional stem, class token without position
    "ViTamin-S": (16, True),  # convolutional stages, mean, norm after it
    "convnext_tiny": (32, False),
    "MobileCLIP2-S0": (32, False),  # FastViT, batch norm
}
# The widest by far; PE-Core-T and MobileCLIP2-B have what it has.
NAMES = [pytest.param(k, marks=[pytest.mark.slow] * (k == "EVA01-g-14")) for k in KINDS]
TOKENS = [name for name, (_, ends) in zip(NAMES, KINDS.values(), strict=True) if ends]


class _Towers(dict[str, TimmModel]):
    """Each is made when a test asks for it."""

    def __missing__(self, name: str) -> TimmModel:
        return self.setdefault(name, random_image_tower(name))


@pytest.fixture(scope="module")
def towers() -> dict[str, TimmModel]:
    return _Towers()


def backbone(tower: TimmModel, name: str, **options: Any) -> CLIPTimm:
    size = open_clip.get_model_config(name)["embed_dim"]
    return CLIPTimm(tower=copy.deepcopy(tower), embed_dim=size, **options).eval()


def pictures(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.double(), dim=-1)


def largest(found: Tensor, expected: Tensor) -> float:
    return (found.double() - expected.double()).abs().max().item()


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_the_image_vector_is_open_clips(name: str, towers: dict[str, TimmModel]) -> None:
    tower, stride = towers[name], KINDS[name][0]
    side = tower.image_size[0]
    found = backbone(tower, name)(pictures(side, side))
    assert largest(found["clip_global"], unit(tower(pictures(side, side)))) < 1e-5
    assert found["clip_dense"].shape == (2, tower(pictures(side, side)).shape[1], side // stride,
                                         side // stride)  # fmt: skip
    assert found["clip_global"].dtype == found["clip_dense"].dtype == torch.float32
    assert largest(found["clip_dense"].norm(dim=1), torch.ones(1)) < 1e-5
    assert found["clip_dense"].var(dim=(2, 3)).min() > 0


def last_tokens(tower: TimmModel, images: Tensor) -> Tensor:
    """What the blocks of timm's own forward give."""
    seen = []
    handle = tower.trunk.blocks[-1].register_forward_hook(lambda *args: seen.append(args[-1]))
    tower(images)
    handle.remove()
    return seen[0].double()


def naive_dense(tower: TimmModel, images: Tensor, tokens: Tensor | None = None) -> Tensor:
    """(N, L, D) vectors of the patches by the formulas, in float64, of what the blocks give."""
    exact = copy.deepcopy(tower).double()
    trunk = exact.trunk
    tokens = last_tokens(tower, images) if tokens is None else tokens
    prefix = trunk.num_prefix_tokens
    if trunk.global_pool == "token":
        # Each patch in the class token's place.
        vectors = [trunk.forward_head(trunk.norm(tokens[:, i : i + 1]))
                   for i in range(prefix, tokens.shape[1])]  # fmt: skip
    elif trunk.global_pool == "avg":
        # The mean of one token.
        head = [tokens[:, :prefix]] if prefix else []
        vectors = [trunk.forward_head(trunk.norm(torch.cat([*head, tokens[:, i : i + 1]], 1)))
                   for i in range(prefix, tokens.shape[1])]  # fmt: skip
    else:
        # Attention to one token alone has the weight one.
        vectors = [trunk.head(trunk.fc_norm(trunk.attn_pool(trunk.norm(tokens[:, i : i + 1]))))
                   for i in range(prefix, tokens.shape[1])]  # fmt: skip
    return unit(exact.head(torch.stack(vectors, dim=1)))


@torch.no_grad()
@pytest.mark.parametrize("name", TOKENS)
def test_a_patch_goes_through_what_the_image_vector_goes_through(
    name: str, towers: dict[str, TimmModel]
) -> None:
    images = pictures(*towers[name].image_size, count=1)
    found = backbone(towers[name], name)(images)["clip_dense"].flatten(2).mT
    assert largest(found, naive_dense(towers[name], images)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["convnext_tiny", "MobileCLIP2-S0"])
def test_a_position_of_a_map_goes_through_what_the_mean_goes_through(
    name: str, towers: dict[str, TimmModel]
) -> None:
    tower = towers[name]
    images = pictures(64, 96, count=1)
    maps = tower.trunk.forward_features(images)
    exact = copy.deepcopy(tower).double()
    assert maps.shape[2:] == (2, 3)
    for y in range(2):
        for x in range(3):
            single = maps[:, :, y : y + 1, x : x + 1].double()
            expected = unit(exact.head(exact.trunk.forward_head(single)))
            found = backbone(tower, name)(images)["clip_dense"][:, :, y, x]
            assert largest(found, expected) < 1e-5


def of_another_size(name: str, tower: TimmModel, size: tuple[int, int]) -> TimmModel:
    """The same weights in a tower that timm builds for images of any size."""
    config = small_config(name)["vision_cfg"]
    with few_blocks():
        other = copy.deepcopy(tower)
        options = {} if name == "MobileCLIP2-B" else {"dynamic_img_size": True}
        trunk = timm.create_model(
            config["timm_model_name"], num_classes=0, global_pool=tower.trunk.global_pool, **options
        )
    if isinstance(tower.trunk.head, nn.Linear):
        trunk.head = copy.deepcopy(tower.trunk.head)
    trunk.load_state_dict(tower.trunk.state_dict())
    if not options:
        trunk.set_input_size(size)
    other.trunk = trunk.eval()
    return other


@torch.no_grad()
@pytest.mark.parametrize("grid", [(2, 5), (9, 4), (20, 20)])
@pytest.mark.parametrize("name", TOKENS)
def test_other_sizes_equal_timms_own(
    name: str, grid: tuple[int, int], towers: dict[str, TimmModel]
) -> None:
    stride = KINDS[name][0]
    size = (grid[0] * stride, grid[1] * stride)
    net = backbone(towers[name], name)
    found = net(pictures(*size, count=1))
    expected = unit(of_another_size(name, towers[name], size)(pictures(*size, count=1)))
    assert largest(found["clip_global"], expected) < 1e-5
    assert found["clip_dense"].shape[2:] == grid
    # What is kept of a size does not reach the next one.
    side = towers[name].image_size
    again = net(pictures(*side, count=1))["clip_global"]
    assert torch.equal(again, backbone(towers[name], name)(pictures(*side, count=1))["clip_global"])


@torch.no_grad()
def test_positions_are_resized_as_asked(towers: dict[str, TimmModel]) -> None:
    name = "ViT-B-32-SigLIP2-256"
    images = pictures(96, 320, count=1)
    found = [
        backbone(towers[name], name, pos_embed_resize=mode) for mode in ("bilinear", "bicubic")
    ]
    a, b = (net(images)["clip_global"] for net in found)
    assert largest(a, b) > 1e-4
    table = towers[name].trunk.pos_embed
    expected = resample_abs_pos_embed(table, (3, 10), (8, 8), num_prefix_tokens=0)
    assert largest(found[1]._positions(found[1].trunk, (3, 10)), expected) < 1e-6


def prompts(net: CLIPTimm, depth: int, count: int = 3) -> DeepPrompts:
    torch.manual_seed(0)
    made = DeepPrompts(
        num_tokens=count, width=net.trunk.embed_dim, depth=depth, patch_size=net.patch_size,
        dropout=0.0,
    )  # fmt: skip
    return made


def naive_prompted(tower: TimmModel, made: DeepPrompts, images: Tensor) -> Tensor:
    """The image vector with prompts, by hooks around timm's own blocks, in float64."""
    exact, made = copy.deepcopy(tower).double(), copy.deepcopy(made).double().eval()
    trunk = exact.trunk
    prefix, count = trunk.num_prefix_tokens, made.tokens.shape[1]

    def before(index: int, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens = args[0]
        end = prefix + (count if 0 < index <= made.depth else 0)
        parts = [tokens[:, :prefix], tokens[:, end:]]
        if index < made.depth:
            parts.insert(1, made.proj(made.tokens[index]).expand(len(tokens), -1, -1))
        return (torch.cat(parts, 1), *args[1:])

    for index, block in enumerate(trunk.blocks):
        # Rotary positions are the patches' own.
        if index < made.depth and hasattr(block.attn, "num_prefix_tokens"):
            block.attn.num_prefix_tokens = prefix + count
        block.register_forward_pre_hook(lambda module, args, index=index: before(index, args))

    def after(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens, end = args[0], prefix + (count if made.depth == len(trunk.blocks) else 0)
        return (made.norm(torch.cat([tokens[:, :prefix], tokens[:, end:]], 1)),)

    trunk.norm.register_forward_pre_hook(after)
    return unit(exact(images.double()))


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", TOKENS)
def test_prompts_join_the_patches_in_every_block(
    name: str, depth: int, towers: dict[str, TimmModel]
) -> None:
    made = prompts(backbone(towers[name], name), depth)
    net = backbone(towers[name], name, prompts=made)
    images = pictures(*towers[name].image_size, count=1)
    expected = naive_prompted(towers[name], made, images)
    assert largest(net(images)["clip_global"], expected) < 1e-5
    plain = backbone(towers[name], name)(images)["clip_global"]
    assert largest(plain, expected) > 1e-4


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_only_prompts_learn(name: str, use_checkpoint: bool, towers: dict[str, TimmModel]) -> None:
    made = prompts(backbone(towers[name], name), 2)
    net = backbone(towers[name], name, prompts=made, use_checkpoint=use_checkpoint).train()
    net(pictures(2 * net.patch_size, 3 * net.patch_size))["clip_dense"].sum().backward()
    learned = {name for name, p in net.named_parameters() if p.grad is not None}
    assert learned == {f"prompts.{name}" for name, _ in made.named_parameters()}


def test_training_changes_no_statistics(towers: dict[str, TimmModel]) -> None:
    net = backbone(towers["MobileCLIP2-S0"], "MobileCLIP2-S0")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    evaluated = net(pictures(64, 64))
    trained = net.train()(pictures(64, 64))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(torch.equal(evaluated[name], trained[name]) for name in evaluated)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_near_and_the_same_inside_autocast(
    name: str, towers: dict[str, TimmModel]
) -> None:
    images = pictures(2 * KINDS[name][0], 3 * KINDS[name][0])
    exact = backbone(towers[name], name)(images)
    net = backbone(towers[name], name, inference_dtype=torch.bfloat16)
    found = net(images)
    for key, vectors in found.items():
        assert vectors.dtype == torch.float32
        assert largest(vectors, exact[key]) > 0
        assert F.cosine_similarity(vectors, exact[key]).min() > 0.99
    # In training the matrices are those of training.
    assert all(torch.equal(exact[key], net.train()(images)[key]) for key in exact)


# The last block of training-free methods


def rotated(vectors: Tensor, attention: nn.Module, table: Tensor, prefix: int) -> Tensor:
    """(heads, L, C) with the patches turned: pairs of channels by an angle each."""
    sin, cos = (part.double() for part in table.chunk(2, dim=-1))
    result = vectors.clone()
    for channel in range(vectors.shape[2]):
        half = vectors.shape[2] // 2
        if attention.rotate_half:
            other, sign = (channel + half, -1) if channel < half else (channel - half, 1)
        else:
            other, sign = (channel + 1, -1) if channel % 2 == 0 else (channel - 1, 1)
        turned = vectors[:, prefix:, channel] * cos[:, channel]
        turned = turned + sign * vectors[:, prefix:, other] * sin[:, channel]
        result[:, prefix:, channel] = turned
    return result


def naive_last_tokens(tower: TimmModel, images: Tensor, method: str, grid: tuple) -> Tensor:
    """(1, L, C) tokens behind the last block in float64; of them the patches count."""
    exact = copy.deepcopy(tower).double()
    trunk, block = exact.trunk, exact.trunk.blocks[-1]
    seen: list[Tensor] = []
    block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    exact(images.double())
    (x,), attn, prefix = seen[0], block.attn, trunk.num_prefix_tokens
    is_post = "PostNorm" in type(block).__name__
    factors = dict(block.named_parameters())
    first, second = (
        factors.get(f"gamma_{i}", factors.get(f"ls{i}.gamma", torch.ones(()))) for i in (1, 2)
    )
    normed = x if is_post else block.norm1(x)
    if attn.qkv is None:
        packed = torch.cat([part(normed) for part in (attn.q_proj, attn.k_proj, attn.v_proj)], 1)
    else:
        packed = normed @ attn.qkv.weight.T
        if attn.qkv.bias is not None:
            packed = packed + attn.qkv.bias
        elif getattr(attn, "q_bias", None) is not None:
            zero = torch.zeros_like(attn.q_bias)
            packed = packed + torch.cat([attn.q_bias, zero, attn.v_bias])
    query, key, value = packed.view(len(x), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
    query, key = attn.q_norm(query), attn.k_norm(key)
    if getattr(trunk, "rope", None) is not None:
        # timm's own table, for this grid.
        table = tower.trunk.rope.get_embed(grid)
        query, key = (rotated(part, attn, table, prefix) for part in (query, key))
    heads = zip(query.numpy(), key.numpy(), value.numpy(), strict=True)
    mixed = torch.from_numpy(np.stack([naive_mix(method, *head, grid) for head in heads], 1))
    branch = attn.proj(attn.norm(mixed.flatten(1)))
    branch = block.norm1(branch) if is_post else first * branch
    if method != "sclip":
        return branch[None]
    x = x + branch
    inner = block.norm2(block.mlp(x)) if is_post else second * block.mlp(block.norm2(x))
    return (x + inner)[None]


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", [(3, 5), (4, 2)])
@pytest.mark.parametrize("name", TOKENS)
def test_last_blocks_equal_the_formulas(
    name: str, grid: tuple[int, int], method: str, towers: dict[str, TimmModel]
) -> None:
    size = tuple(side * KINDS[name][0] for side in grid)
    images, tower = pictures(*size, count=1), of_another_size(name, towers[name], size)
    net = backbone(towers[name], name, last_block=method)
    found, plain = net(images), backbone(towers[name], name)(images)
    expected = naive_dense(tower, images, naive_last_tokens(tower, images, method, grid))
    assert largest(found["clip_dense"].flatten(2).mT, expected) < 1e-5
    assert largest(found["clip_dense"], plain["clip_dense"]) > 1e-3
    assert torch.equal(found["clip_global"], plain["clip_global"])
    shapes = net.output_shape()
    assert {name: found[name].shape[1] for name in shapes} == {
        name: shape.channels for name, shape in shapes.items()
    }
    half = backbone(towers[name], name, last_block=method, inference_dtype=torch.bfloat16)(images)
    assert F.cosine_similarity(half["clip_dense"], found["clip_dense"]).min() > 0.98


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_a_last_block_with_norms_behind_equals_the_formulas(
    method: str, towers: dict[str, TimmModel]
) -> None:
    """As in EVA02-E."""
    tower, grid = copy.deepcopy(towers["EVA02-B-16"]), (2, 3)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 512}
    tower.trunk = Eva(img_size=(32, 48), global_pool="token", use_post_norm=True, **sizes)
    randomize(tower.trunk).eval()
    images = pictures(32, 48, count=1)
    found = backbone(tower, "EVA02-B-16", last_block=method)(images)
    expected = naive_dense(tower, images, naive_last_tokens(tower, images, method, grid))
    assert largest(found["clip_dense"].flatten(2).mT, expected) < 1e-5


def test_a_feature_map_has_no_last_block(towers: dict[str, TimmModel]) -> None:
    message = r"LAST_BLOCK: found 'naclip' with an image tower .* no self-attention, expected clip"
    for name in ("convnext_tiny", "MobileCLIP2-S0"):
        with pytest.raises(ConfigError, match=message) as error:
            backbone(towers[name], name, last_block="naclip")
        assert "\n" not in str(error.value)


# From a config


def tiny_model(path: Path, name: str) -> Path:
    """A model json with the image tower of a model and a tiny text tower."""
    config = small_config(name, text_cfg=TINY_TEXT)
    config.pop("custom_text", None)
    return write_json(path / "model.json", config)


@pytest.fixture
def timm_cfg(tiny_cfg: CfgNode, tmp_path: Path) -> CfgNode:
    cfg = tiny_cfg.clone()
    cfg.MODEL.CLIP.NAME = str(tiny_model(tmp_path, "ViT-B-32-SigLIP2-256"))
    cfg.MODEL.BACKBONE.NAME = "build_clip_backbone"
    return cfg


def test_the_builder_takes_what_the_image_tower_needs(timm_cfg: CfgNode, tiny_cfg: CfgNode) -> None:
    with few_blocks():
        assert type(build_backbone(timm_cfg)) is CLIPTimm
    tiny_cfg.MODEL.BACKBONE.NAME = "build_clip_backbone"
    assert type(build_backbone(tiny_cfg)) is CLIPViT


@pytest.mark.parametrize("backbone", ["CLIPViT", "CLIPTimm"])
def test_a_backbone_of_another_tower_names_the_one_that_takes_both(
    backbone: str, timm_cfg: CfgNode, tiny_cfg: CfgNode
) -> None:
    cfg = timm_cfg if backbone == "CLIPViT" else tiny_cfg
    cfg.MODEL.BACKBONE.NAME = backbone
    with few_blocks(), pytest.raises(ConfigError, match="build_clip_backbone") as error:
        build_backbone(cfg)
    assert "\n" not in str(error.value)
    cfg.MODEL.BACKBONE.NAME = "build_clip_backbone"
    with few_blocks():
        build_backbone(cfg)


def test_a_feature_map_takes_no_prompts(timm_cfg: CfgNode, tmp_path: Path) -> None:
    timm_cfg.MODEL.CLIP.NAME = str(tiny_model(tmp_path, "convnext_tiny"))
    timm_cfg.MODEL.CLIP.PROMPT.NUM_TOKENS = 4
    with few_blocks(), pytest.raises(ConfigError, match="NUM_TOKENS: found 4.*expected 0"):
        build_backbone(timm_cfg)
    timm_cfg.MODEL.CLIP.PROMPT.NUM_TOKENS = 0
    with few_blocks():
        assert build_backbone(timm_cfg).prompts is None


def test_weights_are_read_from_open_clips_file(timm_cfg: CfgNode, tmp_path: Path) -> None:
    config = small_config("ViT-B-32-SigLIP2-256", text_cfg=TINY_TEXT, custom_text=True)
    with few_blocks():
        model = open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"})
    randomize(model)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "clip.safetensors")
    timm_cfg.MODEL.CLIP.NAME = str(write_json(tmp_path / "model.json", config))
    timm_cfg.MODEL.CLIP.PRETRAINED = str(tmp_path / "clip.safetensors")
    timm_cfg.MODEL.CLIP.PROMPT.NUM_TOKENS = 0
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    with few_blocks():
        net = build_backbone(timm_cfg).eval()
    assert torch.equal(before, torch.random.get_rng_state())
    images = pictures(256, 256, count=1)
    with torch.no_grad():
        expected = model.eval().encode_image(images, normalize=True)
        assert largest(net(images)["clip_global"], expected) < 1e-5
    del state["visual.trunk.norm.bias"]
    save_file(state, tmp_path / "clip.safetensors")
    with few_blocks(), pytest.raises(CheckpointError, match=r"trunk\.norm\.bias is missing"):
        build_backbone(timm_cfg)


@torch.no_grad()
def test_no_pixel_of_an_image_is_left_out(timm_cfg: CfgNode) -> None:
    """As timm does with the pixels behind the last whole patch of a tower's own size."""
    timm_cfg.MODEL.CLIP.PROMPT.NUM_TOKENS = 0
    timm_cfg.MODEL.TAGCLIP.TEST.OUTPUT = "scores"
    with few_blocks():
        model = build_model(timm_cfg).eval()
    # 32 pixels a patch: 6 rows and columns are no whole one.
    image = torch.randint(0, 256, (3, 70, 102), dtype=torch.uint8)
    changed = [image.clone() for _ in range(2)]
    changed[0][:, 69], changed[1][:, :, 101] = 255 - image[:, 69], 255 - image[:, :, 101]
    scores, *others = (model([{"image": pixels}])[0]["sem_seg"] for pixels in (image, *changed))
    assert all((scores - other).abs().max() > 0 for other in others)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timm_model_name": "resnet18"}, "timm_model_name resnet18 of timm's resnet, not of its"),
        ({"timm_model_name": "naflexvit_base_patch16_gap"}, "of timm's naflexvit, not of its"),
        ({"timm_model_name": "vit_nope"}, "vit_nope, which timm .* does not have"),
        ({"timm_model_name": "hf-hub:org/net"}, "which timm .* does not have"),
        ({"timm_model_name": "vit_srelpos_small_patch16_224"}, "positions are of one image size"),
        ({"timm_model_name": "convnext_atto", "timm_pool": "abs_attn"}, "timm_pool abs_attn"),
        ({"timm_model_name": "convnext_atto", "timm_pool": "rot_attn"}, "timm_pool rot_attn"),
        ({"timm_pool": "map"}, "open_clip cannot build it"),
        ({"timm_proj": "other"}, "open_clip cannot build it"),
        ({"timm_proj": "none"}, "vectors of 192 numbers, expected 64"),
    ],
)
def test_networks_that_there_are_none_of(
    options: dict[str, Any], words: str, timm_cfg: CfgNode, tmp_path: Path
) -> None:
    timm_cfg.MODEL.CLIP.NAME = str(vit_json(tmp_path, **options))
    with pytest.raises(ConfigError, match=words) as error:
        build_backbone(timm_cfg)
    assert "\n" not in str(error.value)


def vit_json(path: Path, **options: Any) -> Path:
    """A model json with a small ViT of timm, or what the options say."""
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "image_size": 224}
    config = {"embed_dim": 64, "vision_cfg": vision | options, "text_cfg": TINY_TEXT}
    return write_json(path / "vit.json", config)


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch16_dinov3",  # rotary embeddings without a size of their own, registers
        "vit_small_patch14_reg4_dinov2",  # registers
        "vit_tiny_patch16_224.augreg_in21k",  # a name with a tag of timm
    ],
)
def test_other_networks_of_timm_equal_open_clip(
    name: str, timm_cfg: CfgNode, tmp_path: Path
) -> None:
    timm_cfg.MODEL.CLIP.NAME = str(vit_json(tmp_path, timm_model_name=name, timm_pool=""))
    timm_cfg.MODEL.CLIP.PROMPT.NUM_TOKENS = 0
    with few_blocks():
        net = build_backbone(timm_cfg).eval()
        tower = CLIPSource(timm_cfg.MODEL.CLIP.NAME).timm_tower()
    images = pictures(*tower.trunk.patch_embed.img_size, count=1)
    assert largest(net(images)["clip_global"], unit(tower(images))) < 1e-5
    assert net(pictures(56 * 4, 56 * 2))["clip_dense"].shape[0] == 2


@pytest.mark.parametrize("name", NAMES)
def test_what_is_compiled_is_what_is_called(name: str, towers: dict[str, TimmModel]) -> None:
    net = backbone(towers[name], name, compile_blocks=True)
    called = []
    parts = net.trunk.blocks if KINDS[name][1] else net.trunk.stages
    for part in parts:
        assert part._compiled_call_impl is not None
        # Runs without a compiler.
        part._compiled_call_impl = lambda *args, part=part, **options: (
            called.append(part) or part._call_impl(*args, **options)
        )
    with torch.no_grad():
        net(pictures(64, 64) if KINDS[name][0] != 14 else pictures(56, 56))
    assert called == list(parts)


@pytest.mark.parametrize("name", ["PE-Core-T-16-384", "ViT-S-32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_tower_may_be_built_in_inference_mode(name: str, dtype: torch.dtype) -> None:
    """Its tensors count no versions."""
    tower = random_image_tower(name)
    if name == "ViT-S-32":
        sizes = CLIPSource(name).vision_config() | {"layers": 2, "state": tower.state_dict()}
        net = CLIPViT(**sizes, inference_dtype=dtype).eval()
    else:
        net = backbone(tower, name, inference_dtype=dtype)
    for grid in ((3, 5), (2, 4)):
        images = pictures(*(side * net.patch_size for side in grid))
        assert net(images)["clip_dense"].shape[2:] == grid
