"""CLIP's vision transformer as a detectron2 backbone: dense and global unit vectors."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tagclip.config.checks import check_value
from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.backbone.attention_pool import AttentionPool
from tagclip.modeling.backbone.last_block import check_last_block, run_last_block
from tagclip.modeling.backbone.prompts import DeepPrompts
from tagclip.modeling.backbone.vit_block import Block, QuickGELU
from tagclip.modeling.clip.layouts import describe_misfit
from tagclip.modeling.clip.preprocessing import compare_with_weights
from tagclip.modeling.clip.source import CLIPSource
from tagclip.modeling.precision import inference_dtype
from tagclip.utils.frozen import tensor_identity

__all__ = ["CLIPViT", "resize_positions"]

logger = logging.getLogger(__name__)

# open_clip's names inside `visual.`, and ours.
_RENAMED = (
    ("transformer.resblocks.", "blocks."),
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj.", "attn.proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
    ("conv1.", "patch_embed."),
)


def resize_positions(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], mode: str, num_prefix: int = 1
) -> Tensor:
    """Resize a position table (docs/method.md, section 3); what stands before the map is kept.

    Args:
        table: (P + rows * columns, W), the class token's position first, then the map row by row.
        old: (rows, columns) of the table.
        new: (rows, columns) of the result.
        mode: ``bilinear`` as the released code, or ``bicubic`` as open_clip, with antialiasing.
        num_prefix: P, rows of the class token and the like.

    Returns:
        (P + rows * columns of ``new``, W); ``table`` itself if the two are equal.
    """
    if old == new:
        return table
    patches = table[num_prefix:].T.unflatten(1, old)[None]
    # torch 2.14 antialiases a map of one column wrongly on the CPU, of one row rightly.
    transpose = mode == "bicubic" and new[1] == 1
    if transpose:
        patches, new = patches.mT, new[::-1]
    resized = F.interpolate(
        patches, new, mode=mode, align_corners=False, antialias=mode == "bicubic"
    )
    resized = resized.mT if transpose else resized
    return torch.cat([table[:num_prefix], resized[0].flatten(1).T])


def check_backbone(source: CLIPSource, backbone: str, is_timm: bool) -> None:
    """Refuse a backbone that is not made for a model's image tower.

    Raises:
        ConfigError: it is made for others.
    """
    if source.is_timm != is_timm:
        kind = "one that open_clip builds on timm" if source.is_timm else "open_clip's own ViT"
        raise ConfigError(
            f"MODEL.BACKBONE.NAME: found {backbone}, but the image tower of MODEL.CLIP.NAME "
            f"{source.name} is {kind}; set MODEL.BACKBONE.NAME to build_clip_backbone, which "
            "takes both"
        )


def build_prompts(cfg: CfgNode, width: int, layers: int, patch_size: int) -> DeepPrompts:
    """Build the deep prompts that a config asks for.

    Args:
        cfg: with ``MODEL.CLIP.PROMPT``.
        width: channels of the tokens.
        layers: blocks of the tower.
        patch_size: side of a patch in pixels.

    Raises:
        ConfigError: there are fewer layers than prompts are asked for.
    """
    prompt = cfg.MODEL.CLIP.PROMPT
    depth = prompt.DEPTH or layers
    if not 1 <= depth <= layers:
        raise ConfigError(
            f"MODEL.CLIP.PROMPT.DEPTH: found {prompt.DEPTH}, expected 0 to {layers}, "
            f"the layers of {cfg.MODEL.CLIP.NAME}"
        )
    return DeepPrompts(
        num_tokens=prompt.NUM_TOKENS,
        width=width,
        depth=depth,
        patch_size=patch_size,
        dropout=prompt.DROPOUT,
        post_norm=prompt.POST_NORM,
    )


@BACKBONE_REGISTRY.register()
class CLIPViT(Backbone):
    """Frozen CLIP ViT with trainable deep prompts (TagCLIP paper, section 3.1).

    The mathematics: docs/method.md, section 3.
    """

    @configurable
    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        patch_size: int,
        grid_size: tuple[int, int],
        embed_dim: int,
        quick_gelu: bool,
        prompts: DeepPrompts | None = None,
        ln_pre: bool = True,
        pool_type: str = "tok",
        final_ln_after_pool: bool = False,
        attn_pooler_heads: int = 0,
        attn_pooler_queries: int = 256,
        act_kwargs: Mapping[str, Any] | None = None,
        norm_kwargs: Mapping[str, Any] | None = None,
        block_parts: Collection[str] = (),
        pos_embed_resize: str = "bilinear",
        double_cls_embed: bool = True,
        last_block: str = "clip",
        use_checkpoint: bool = False,
        compile_blocks: bool = False,
        inference_dtype: torch.dtype = torch.float32,
        state: Mapping[str, Tensor] | None = None,
        weights_path: str = "",
        weights_sha256: str = "",
        pixel_statistics: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Build the tower, load and freeze CLIP's weights.

        Args:
            width: channels of the tokens, W.
            layers: number of blocks.
            heads: attention heads, divide ``width``.
            hidden: channels inside the MLP.
            patch_size: side of a patch in pixels.
            grid_size: (rows, columns) of CLIP's position table.
            embed_dim: channels of the output, D.
            quick_gelu: OpenAI's activation instead of GELU.
            prompts: trainable prompts; None is plain CLIP.
            ln_pre: whether the tower has a LayerNorm before the first block.
            pool_type: what becomes the global vector: the first (``tok``) or the mean of the others
                (``avg``), of all tokens or, with an attention pool, of its queries.
            final_ln_after_pool: the last LayerNorm comes after the mean.
            attn_pooler_heads: of an attention pool, divide ``embed_dim``; 0 is none.
            attn_pooler_queries: queries of the attention pool.
            act_kwargs: keyword arguments of GELU.
            norm_kwargs: keyword arguments of all LayerNorms but those of an attention pool.
            block_parts: see `Block`.
            pos_embed_resize: ``bilinear`` or ``bicubic`` for other grids.
            double_cls_embed: count the class embedding twice, as the released code.
            last_block: ``clip``, or a method of `mix_values` for the patches, without prompts.
            use_checkpoint: recompute each block in the backward pass.
            compile_blocks: `torch.compile` them, when they are first called.
            inference_dtype: of the blocks' matrices outside training.
            state: open_clip's ``visual.`` tensors without that prefix; None keeps random ones.
            weights_path: where ``state`` comes from, for messages.
            weights_sha256: recorded in checkpoints and compared when they are loaded.
            pixel_statistics: recorded in checkpoints, see `CLIPSource.pixel_statistics`.

        Raises:
            ConfigError: a word is unknown, or the last block and prompts exclude each other.
            CheckpointError: ``state`` does not fit.
        """
        super().__init__()
        self.patch_size, self.grid_size, self.embed_dim = patch_size, tuple(grid_size), embed_dim
        check_value("MODEL.CLIP.POS_EMBED_RESIZE", pos_embed_resize)
        check_last_block(last_block, prompts)
        self.pos_embed_resize, self.last_block = pos_embed_resize, last_block
        self.double_cls_embed, self.use_checkpoint = double_cls_embed, use_checkpoint
        self.weights_sha256, self.pixel_statistics = weights_sha256, pixel_statistics
        self.pool_type, self.final_ln_after_pool = pool_type, final_ln_after_pool
        self._add_embeddings(width)
        norm = partial(nn.LayerNorm, **(norm_kwargs or {}))
        act = QuickGELU if quick_gelu else partial(nn.GELU, **(act_kwargs or {}))
        self.ln_pre = norm(width) if ln_pre else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, act(), norm, block_parts) for _ in range(layers)
        )
        self.attn_pool = None
        if attn_pooler_heads:
            pool = AttentionPool(width, embed_dim, attn_pooler_heads, attn_pooler_queries)
            self.attn_pool, width = pool, embed_dim
        self.ln_post = norm(width)
        self.proj = nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)
        if state is not None:
            self._load_clip(state, weights_path)
        self.requires_grad_(False)
        self.prompts = prompts
        self.inference_dtype, self.compile_blocks = inference_dtype, compile_blocks
        self._compile(self.blocks)
        self._converted: dict[tuple, tuple[Block, ...]] = {}
        self._position_cache: dict[tuple, Tensor] = {}

    def _add_embeddings(self, width: int) -> None:
        self.patch_embed = nn.Conv2d(3, width, self.patch_size, stride=self.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        positions = 1 + self.grid_size[0] * self.grid_size[1]
        self.positional_embedding = nn.Parameter(torch.randn(positions, width) * width**-0.5)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        clip = cfg.MODEL.CLIP
        source = CLIPSource.from_config(cfg)
        check_backbone(source, cls.__name__, is_timm=False)
        tower = source.vision_config()
        prompts = None
        if clip.PROMPT.NUM_TOKENS:
            prompts = build_prompts(cfg, tower["width"], tower["layers"], tower["patch_size"])
        state = source.vision_state()
        place = source.path or "random weights"
        activation = "QuickGELU" if source.quick_gelu else "GELU"
        logger.info("CLIP %s, %s: %s, sha256 %s", clip.NAME, activation, place, source.sha256)
        compare_with_weights(cfg, source)
        return tower | {
            "prompts": prompts,
            "pos_embed_resize": clip.POS_EMBED_RESIZE,
            "double_cls_embed": clip.DOUBLE_CLS_EMBED,
            "last_block": clip.LAST_BLOCK,
            "use_checkpoint": cfg.MODEL.BACKBONE.CHECKPOINT,
            "compile_blocks": cfg.MODEL.COMPILE,
            "inference_dtype": inference_dtype(cfg.TEST.DTYPE, cfg.MODEL.DEVICE),
            "state": state,
            "weights_path": str(source.path or ""),
            "weights_sha256": source.sha256,
            "pixel_statistics": source.pixel_statistics,
        }

    @property
    def size_divisibility(self) -> int:
        """Images must be padded to a multiple of the patch."""
        return self.patch_size

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of the outputs."""
        shapes = {
            "clip_dense": ShapeSpec(channels=self.embed_dim, stride=self.patch_size),
            "clip_global": ShapeSpec(channels=self.embed_dim),
        }
        if self.last_block != "clip":
            width = len(self.class_embedding)
            shapes["clip_keys"] = ShapeSpec(channels=width, stride=self.patch_size)
        return shapes

    def forward(self, images: Tensor, positions: Tensor | None = None) -> dict[str, Tensor]:
        """Encode normalised images.

        Args:
            images: (N, 3, H, W) float, H and W multiples of the patch size.
            positions: (1 + h*w, W) position table of the patch grid, default the resized one.

        Returns:
            ``clip_dense`` (N, D, h, w) and ``clip_global`` (N, D), float32, unit length over D;
            where LAST_BLOCK is not clip, ``clip_keys`` (N, W, h, w), keys of the last block.
        """
        tokens, grid = self.embed(images, positions)
        tokens, whole, keys = self.encode(tokens, grid)
        vectors = self.project(tokens)
        pooled = vectors[:, 0] if self._reads_class_token else self.pool(whole)
        features = {"clip_dense": _as_map(vectors[:, 1:], grid), "clip_global": pooled}
        return features if keys is None else features | {"clip_keys": _as_map(keys, grid)}

    @property
    def _reads_class_token(self) -> bool:
        return self.pool_type == "tok" and self.attn_pool is None

    def embed(
        self, images: Tensor, positions: Tensor | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Return (N, 1 + h*w, W) tokens before ``ln_pre``, class token first, and (h, w)."""
        patches = self.patch_embed(images)
        grid = (patches.shape[-2], patches.shape[-1])
        positions = self._positions(grid) if positions is None else positions
        cls = positions[:1] + self.class_embedding * (2 if self.double_cls_embed else 1)
        patches = patches.flatten(2).transpose(1, 2) + positions[1:]
        return torch.cat([cls.expand(images.shape[0], 1, -1), patches], dim=1), grid

    def encode(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run ``ln_pre`` and all blocks: (N, 1 + n, W) -> (N, 1 + n, W), prompts dropped.

        Beside the tokens those whose pool is CLIP's image vector, and (N, n, W) keys of the last
        block, None where it is CLIP's.
        """
        tokens, num_patches = self.ln_pre(tokens), grid[0] * grid[1]
        prompts = self.prompts.project() if self.prompts is not None else ()
        blocks = self.active_blocks()
        for index, block in enumerate(blocks if self.last_block == "clip" else blocks[:-1]):
            if self.prompts is not None and index <= len(prompts):
                layer = prompts[index] if index < len(prompts) else None
                tokens = self.prompts.insert(tokens, layer, num_patches)
            if self.use_checkpoint and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        if self.last_block != "clip":
            dense, keys = run_last_block(blocks[-1], tokens, self.last_block, grid)
            return dense, dense if self._reads_class_token else blocks[-1](tokens), keys
        tokens = torch.cat([tokens[:, :1], tokens[:, -num_patches:]], dim=1)
        return tokens, tokens, None

    def active_blocks(self) -> Sequence[Block]:
        """Return the blocks of training, or their copies in the type of inference.

        The copies are made once; frozen as they are, the blocks change by loading or moving only.
        """
        if self.training or self.inference_dtype is torch.float32:
            return self.blocks
        key = tuple(map(tensor_identity, self.blocks.parameters()))
        # A name of its own: another thread may replace the cache at any time.
        cache = self._converted
        if key not in cache:
            blocks = tuple(block.converted(self.inference_dtype) for block in self.blocks)
            self._compile(blocks)
            self._converted = cache = {key: blocks}
        return cache[key]

    def for_inference(self) -> CLIPViT:
        """Return it with blocks in the type of inference as its own, for graphs; never trained."""
        if self.inference_dtype is torch.float32:
            return self
        # Neither the float32 blocks nor the cache are copied on the way.
        known = {id(self.blocks): nn.ModuleList(self.active_blocks()), id(self._converted): {}}
        model = copy.deepcopy(self, known)
        model.inference_dtype = torch.float32
        return model

    def _compile(self, blocks: Iterable[Block]) -> None:
        for block in blocks if self.compile_blocks else ():
            block.compile()

    def project(self, tokens: Tensor) -> Tensor:
        """Post-norms and projection: (N, L, W) -> (N, L, D) float32 unit vectors.

        Each token goes through what CLIP's image vector goes through, with an attention pool
        through its value path.
        """
        tokens = self._post_norm(tokens)
        if self.attn_pool is not None:
            tokens = self.attn_pool.values(tokens)
        return _unit((self.ln_post(tokens) @ self.proj).float())

    def pool(self, tokens: Tensor) -> Tensor:
        """CLIP's image vector: (N, 1 + n, W) tokens, class token first -> (N, D) float32, unit."""
        tokens = self._post_norm(tokens)
        read = slice(1) if self.pool_type == "tok" else slice(1, None)
        if self.attn_pool is not None:
            tokens = self.attn_pool(tokens, read)
        # With an attention pool open_clip ignores it.
        elif self.final_ln_after_pool:
            tokens = tokens[:, read].mean(1, keepdim=True)
        else:
            tokens = tokens[:, read]
        return _unit((self.ln_post(tokens) @ self.proj).float().mean(1))

    def _post_norm(self, tokens: Tensor) -> Tensor:
        return tokens if self.prompts is None else self.prompts.norm(tokens)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the (1 + h*w, W) position table for a grid; frozen, so computed once."""
        table = self.positional_embedding
        if grid == self.grid_size:
            return table
        key = (grid, tensor_identity(table))
        # A name of its own: another thread may replace the cache at any time.
        cache = self._position_cache
        if key not in cache:
            resized = resize_positions(table, self.grid_size, grid, self.pos_embed_resize)
            self._position_cache = cache = {key: resized}
        return cache[key]

    def _load_clip(self, state: Mapping[str, Tensor], path: str) -> None:
        renamed = {}
        for name, tensor in state.items():
            for old, new in () if name.startswith("attn_pool.") else _RENAMED:
                name = name.replace(old, new)
            renamed[name] = tensor
        table = renamed.get("positional_embedding")
        side = math.isqrt(len(table) - 1) if table is not None else 0
        if side > 0 and side**2 == len(table) - 1 and (side, side) != self.grid_size:
            logger.info("CLIP's position table of %dx%d is resized to %dx%d",
                        side, side, *self.grid_size)  # fmt: skip
            table = resize_positions(table, (side, side), self.grid_size, self.pos_embed_resize)
            renamed["positional_embedding"] = table
        if misfit := describe_misfit(self.state_dict(), renamed):
            raise CheckpointError(
                f"{path or 'CLIP'}: the vision weights do not fit the model config: {misfit}; "
                "check MODEL.CLIP.NAME and MODEL.CLIP.PRETRAINED"
            )
        self.load_state_dict(renamed)


def _as_map(vectors: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, h*w, C) -> (N, C, h, w)."""
    return vectors.transpose(1, 2).unflatten(2, grid)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)
