"""CLIP's image towers that open_clip builds on timm, as a detectron2 backbone."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tagclip.errors import ConfigError
from tagclip.modeling.backbone.frozen_tower import FrozenTower, build_prompts, unit
from tagclip.modeling.backbone.last_block import KEEPS_RESIDUAL, keys_of_patches, mix_values
from tagclip.modeling.backbone.prompts import DeepPrompts
from tagclip.modeling.clip.source import CLIPSource

__all__ = ["CLIPTimm"]

logger = logging.getLogger(__name__)

# What multiplies matrices, and what is computed in float32 around it.
_MATRICES = (nn.Linear, nn.Conv2d)
_NORMS = (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)


@BACKBONE_REGISTRY.register()
class CLIPTimm(FrozenTower):
    """A frozen image tower of open_clip's ``TimmModel``, with deep prompts where it has tokens.

    Nothing of timm is copied: its embedding, blocks, norms and head run as they are. What is said
    of the vectors: docs/method.md, section 3.
    """

    is_timm = True

    @configurable
    def __init__(
        self,
        *,
        tower: nn.Module,
        embed_dim: int,
        prompts: DeepPrompts | None = None,
        pos_embed_resize: str = "bicubic",
        last_block: str = "clip",
        use_checkpoint: bool = False,
        compile_blocks: bool = False,
        inference_dtype: torch.dtype = torch.float32,
        weights_sha256: str = "",
        pixel_statistics: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Freeze a built tower.

        Args:
            tower: `CLIPSource.timm_tower`; its network ends in tokens or in a feature map.
            embed_dim: channels of the output, D.
            prompts: trainable prompts, for tokens without relative positions; None is plain CLIP.
            pos_embed_resize: of position tables (timm's own is ``bicubic``); rotary embeddings are
                computed for each grid.
            last_block: see `FrozenTower`, as for what follows.
            use_checkpoint: compute blocks again in the backward pass.
            compile_blocks: with torch's compiler.
            inference_dtype: of the blocks outside training.
            weights_sha256: of the file.
            pixel_statistics: mean and std that come with the weights.

        Raises:
            ConfigError: a word is unknown, the last block and prompts exclude each other, or there
                is no attention in it.
        """
        super().__init__(
            embed_dim=embed_dim,
            prompts=prompts,
            pos_embed_resize=pos_embed_resize,
            last_block=last_block,
            use_checkpoint=use_checkpoint,
            compile_blocks=compile_blocks,
            inference_dtype=inference_dtype,
            weights_sha256=weights_sha256,
            pixel_statistics=pixel_statistics,
        )
        self.trunk, self.head = tower.trunk, tower.head
        self.requires_grad_(False)
        self.has_tokens = has_tokens(self.trunk)
        if self.has_tokens:
            self.patch_size = self.trunk.patch_embed.feat_ratio(as_scalar=True)
            _take_any_size(self.trunk)
        else:
            self.patch_size = self.trunk.feature_info[-1]["reduction"]
        if last_block != "clip":
            self._check_attention()
        self.prompts = prompts
        if prompts is not None:
            self._add_prompts()
        self.compiled(self._blocks(self.trunk))
        self._rotary_cache: dict[tuple, Tensor] = {}
        self.train(self.training)

    def _check_attention(self) -> None:
        """Refuse a last block without self-attention; let timm call torch's where there is one."""
        attention = getattr(self.trunk.blocks[-1], "attn", None) if self.has_tokens else None
        if not hasattr(attention, "fused_attn"):
            raise ConfigError(
                f"MODEL.CLIP.LAST_BLOCK: found {self.last_block!r} with an image tower "
                f"({type(self.trunk).__name__}) whose last block has no self-attention, expected "
                "clip; take another MODEL.CLIP.NAME"
            )
        attention.fused_attn = True

    def _add_prompts(self) -> None:
        """Keep rotary embeddings to the patches: prompts have no position."""
        for block in self.trunk.blocks[: self.prompts.depth]:
            if hasattr(block.attn, "num_prefix_tokens"):
                block.attn.num_prefix_tokens += self.prompts.tokens.shape[1]

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        clip, source = cfg.MODEL.CLIP, CLIPSource.from_config(cfg)
        options = cls.options(cfg, source)
        tower = source.timm_tower()
        logger.info(
            "CLIP %s, %s of timm: %s, sha256 %s", clip.NAME, type(tower.trunk).__name__,
            source.path or "random weights", source.sha256,
        )  # fmt: skip
        prompts = None
        if clip.PROMPT.NUM_TOKENS:
            trunk = tower.trunk
            if not has_tokens(trunk):
                raise ConfigError(
                    f"MODEL.CLIP.PROMPT.NUM_TOKENS: found {clip.PROMPT.NUM_TOKENS} with the image "
                    f"tower of {clip.NAME}, expected 0: it ends in a feature map "
                    f"({type(trunk).__name__}) and has no tokens that prompts could join"
                )
            patch = trunk.patch_embed.feat_ratio(as_scalar=True)
            prompts = build_prompts(cfg, trunk.embed_dim, len(trunk.blocks), patch)
        return options | {
            "tower": tower,
            "embed_dim": source.config["embed_dim"],
            "prompts": prompts,
        }

    def train(self, mode: bool = True) -> CLIPTimm:
        """Set the mode of the prompts; the frozen tower keeps its statistics and drops nothing."""
        super().train(mode)
        self.trunk.eval()
        self.head.eval()
        return self

    @property
    def key_width(self) -> int:
        """See `FrozenTower.key_width`."""
        attention = self.trunk.blocks[-1].attn
        return attention.num_heads * attention.head_dim

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Encode normalised images.

        Args:
            images: (N, 3, H, W) float, H and W multiples of the stride.

        Returns:
            ``clip_dense`` (N, D, h, w) and ``clip_global`` (N, D), float32, unit length over D;
            where LAST_BLOCK is not clip, ``clip_keys`` (N, W, h, w), keys of the last block.
        """
        trunk = self.active_trunk()
        pooled, dense, keys = (self._tokens if self.has_tokens else self._map)(trunk, images)
        # The head drops, projects or is an MLP: of vectors in any number of dimensions.
        pooled, dense = unit(self.head(pooled)), unit(self.head(dense))
        maps = {"clip_dense": dense, "clip_keys": keys}
        maps = {name: map_.permute(0, 3, 1, 2) for name, map_ in maps.items() if map_ is not None}
        return maps | {"clip_global": pooled}

    def _tokens(self, trunk: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the pooled (N, C) and dense (N, h, w, C) vectors before the projection.

        Beside them the (N, h, w, W) keys of the last block, None where it is CLIP's.
        """
        tokens, grid, rope = self.embed(trunk, images)
        tokens, patches, keys = self.encode(trunk, tokens, grid, rope)
        if self.prompts is not None:
            tokens = self.prompts.norm(tokens)
        tokens = trunk.norm(tokens)
        if patches is None:
            patches = tokens[:, trunk.num_prefix_tokens :]
        else:
            patches, keys = trunk.norm(patches), keys.unflatten(1, grid)
        if trunk.attn_pool is not None:
            patches = _pool_values(trunk.attn_pool, patches)
        dense = trunk.head(trunk.fc_norm(patches)).unflatten(1, grid)
        return trunk.forward_head(tokens), dense, keys

    def embed(
        self, trunk: nn.Module, images: Tensor
    ) -> tuple[Tensor, tuple[int, int], Tensor | None]:
        """Return (N, prefix + h*w, C) tokens of the first block, (h, w) and rotary embeddings."""
        patches = trunk.patch_embed(images)
        grid = (patches.shape[1], patches.shape[2])
        tokens = patches.flatten(1, 2)
        if trunk.num_prefix_tokens:
            parts = [p for p in (trunk.cls_token, trunk.reg_token) if p is not None]
            prefix = torch.cat(parts, dim=1).expand(len(images), -1, -1)
            tokens = torch.cat([prefix, tokens], dim=1)
        if trunk.pos_embed is not None:
            positions = self._positions(trunk, grid)
            # Without positions of their own class and register tokens stay as they are.
            skip = tokens.shape[1] - len(positions)
            tokens = torch.cat([tokens[:, :skip], tokens[:, skip:] + positions], dim=1)
        rope = getattr(trunk, "rope", None)
        return trunk.norm_pre(tokens), grid, None if rope is None else self._rotary(rope, grid)

    def encode(
        self, trunk: nn.Module, tokens: Tensor, grid: tuple[int, int], rope: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run all blocks: (N, prefix + n, C) -> (N, prefix + n, C), prompts dropped.

        Beside the tokens (N, n, C) patches and (N, n, W) keys of the last block, None where it is
        CLIP's.
        """
        options = {} if rope is None else {"rope": rope}
        num_prefix, num_patches = trunk.num_prefix_tokens, grid[0] * grid[1]
        patches = keys = None
        prompts = self.prompts.project() if self.prompts is not None else ()
        for index, block in enumerate(trunk.blocks):
            if self.prompts is not None and index <= len(prompts):
                layer = prompts[index] if index < len(prompts) else None
                tokens = self.prompts.insert(tokens, layer, num_patches, num_prefix)
            if self.last_block != "clip" and block is trunk.blocks[-1]:
                patches, keys = _run_last_block(
                    block, tokens, self.last_block, grid, num_prefix, options
                )
            tokens = self.run_block(block, tokens, **options)
        tokens = torch.cat([tokens[:, :num_prefix], tokens[:, -num_patches:]], dim=1)
        return tokens, patches, keys

    def _map(self, trunk: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, None]:
        """Do the same with a network that ends in a feature map."""
        maps = trunk.forward_features(images).float()
        count, channels, *grid = maps.shape
        # Each position through what the mean goes through: as a map of one position.
        single = maps.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        dense = trunk.forward_head(single).view(count, *grid, -1)
        return trunk.forward_head(maps), dense, None

    def active_trunk(self) -> nn.Module:
        """Return the network of training, or its copy with matrices in the type of inference."""
        return self.in_inference_dtype(self.trunk, self._converted_trunk)

    def _converted_trunk(self) -> nn.Module:
        trunk = copy.deepcopy(self.trunk)
        # A feature map has no tokens to keep in float32.
        for part in trunk.blocks if self.has_tokens else [trunk]:
            _convert(part, self.inference_dtype)
        self.compiled(self._blocks(trunk))
        return trunk

    def _blocks(self, trunk: nn.Module) -> Sequence[nn.Module]:
        return trunk.blocks if self.has_tokens else trunk.stages

    def _positions(self, trunk: nn.Module, grid: tuple[int, int]) -> Tensor:
        """Return the (any + h*w, C) position table for a grid."""
        table, old = trunk.pos_embed[0], trunk.patch_embed.grid_size
        return self.positions_of(table, old, grid, len(table) - old[0] * old[1])

    def _rotary(self, rope: nn.Module, grid: tuple[int, int]) -> Tensor:
        """Return timm's rotary embeddings of a grid."""
        if rope.feat_shape is None:
            return rope.get_embed(shape=grid)
        if grid == tuple(rope.feat_shape):
            return rope.get_embed()
        key = (grid, rope.bands.device)
        cache = self._rotary_cache
        if key not in cache:
            other = copy.deepcopy(rope)
            other.update_feat_shape(grid)
            self._rotary_cache = cache = {key: other.get_embed()}
        return cache[key]


class _Mixing(TorchFunctionMode):
    """Inside, torch's attention is `mix_values`; what timm computes around it is timm's own."""

    def __init__(self, method: str, grid: tuple[int, int], num_prefix: int) -> None:
        super().__init__()
        self._options, self.keys = (grid, num_prefix), None
        self._method = method

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        self.keys = keys_of_patches(key, self._options[1])
        return mix_values(self._method, query, key, value, *self._options)


def _run_last_block(
    block: nn.Module,
    tokens: Tensor,
    method: str,
    grid: tuple[int, int],
    num_prefix: int,
    options: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Return (N, h*w, C) patches and (N, h*w, W) keys of timm's last block, see `mix_values`."""
    with _Mixing(method, grid, num_prefix) as mixing:
        if method in KEEPS_RESIDUAL:
            found = block(tokens, **options)
        elif type(block).__name__.endswith("PostNorm"):
            found = block.norm1(block.attn(tokens, **options))
        else:
            found = block.attn(block.norm1(tokens), **options)
            # A factor of each channel has two names in timm.
            found = block.ls1(found) if hasattr(block, "ls1") else found
            gamma = getattr(block, "gamma_1", None)
            found = found if gamma is None else gamma * found
    return found[:, num_prefix:].to(tokens.dtype), mixing.keys


def has_tokens(trunk: nn.Module) -> bool:
    """Whether a network of timm ends in tokens, not in a feature map."""
    return hasattr(trunk, "blocks") and hasattr(trunk, "patch_embed")


def _take_any_size(trunk: nn.Module) -> None:
    """Let timm's embedding pass images of any size and return their map of patches."""
    from timm.layers import Format

    trunk.patch_embed.strict_img_size, trunk.patch_embed.flatten = False, False
    trunk.patch_embed.output_fmt = Format.NHWC


def _pool_values(pool: nn.Module, tokens: Tensor) -> Tensor:
    """What timm's ``AttentionPoolLatent`` would read that attends to one token alone, of each.

    The attention is left out as in MaskCLIP (arXiv 2112.01071, section 3.2).
    """
    size = pool.kv.out_features // 2
    values = F.linear(tokens, pool.kv.weight[size:], None if pool.kv.bias is None else
                      pool.kv.bias[size:])  # fmt: skip
    values = pool.proj(values)
    return values if pool.mlp is None else values + pool.mlp(pool.norm(values))


def _convert(part: nn.Module, dtype: torch.dtype) -> None:
    """Give the matrices of a module another type; norms and sums stay in float32."""
    for module in part.modules():
        if getattr(module, "qkv_bias_separate", None) is False:
            # EVA multiplies with the matrix itself, unless the biases are added afterwards.
            module.qkv_bias_separate = True
        if isinstance(module, _MATRICES):
            module.to(dtype)
            module.register_forward_pre_hook(_caster(dtype))
        elif isinstance(module, _NORMS):
            module.register_forward_pre_hook(_caster(torch.float32))


def _caster(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda module, args: (args[0].to(dtype), *args[1:])
