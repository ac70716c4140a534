"""CLIP's vision transformer as a detectron2 backbone: dense and global unit vectors."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from tagclip.errors import CheckpointError
from tagclip.modeling.backbone.attention_pool import AttentionPool
from tagclip.modeling.backbone.frozen_tower import FrozenTower, build_prompts, unit
from tagclip.modeling.backbone.last_block import run_last_block
from tagclip.modeling.backbone.positions import resize_positions, square_grid
from tagclip.modeling.backbone.prompts import DeepPrompts
from tagclip.modeling.backbone.vit_block import Block, QuickGELU
from tagclip.modeling.clip.layouts import describe_misfit
from tagclip.modeling.clip.source import CLIPSource

__all__ = ["CLIPViT"]

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


@BACKBONE_REGISTRY.register()
class CLIPViT(FrozenTower):
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
            double_cls_embed: count the class embedding twice, as the released code.
            state: open_clip's ``visual.`` tensors without that prefix; None keeps random ones.
            weights_path: where ``state`` comes from, for messages.
            pos_embed_resize: see `FrozenTower`, as for what follows.
            last_block: how the last block is read.
            use_checkpoint: compute blocks again in the backward pass.
            compile_blocks: with torch's compiler.
            inference_dtype: of the blocks outside training.
            weights_sha256: of the file.
            pixel_statistics: mean and std that come with the weights.

        Raises:
            ConfigError: a word is unknown, or the last block and prompts exclude each other.
            CheckpointError: ``state`` does not fit.
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
        self.patch_size, self.grid_size = patch_size, tuple(grid_size)
        self.double_cls_embed = double_cls_embed
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
        self.compiled(self.blocks)

    def _add_embeddings(self, width: int) -> None:
        self.patch_embed = nn.Conv2d(3, width, self.patch_size, stride=self.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        positions = 1 + self.grid_size[0] * self.grid_size[1]
        self.positional_embedding = nn.Parameter(torch.randn(positions, width) * width**-0.5)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        clip = cfg.MODEL.CLIP
        source = CLIPSource.from_config(cfg)
        options = cls.options(cfg, source)
        tower = source.vision_config()
        prompts = None
        if clip.PROMPT.NUM_TOKENS:
            prompts = build_prompts(cfg, tower["width"], tower["layers"], tower["patch_size"])
        state = source.vision_state()
        place = source.path or "random weights"
        activation = "QuickGELU" if source.quick_gelu else "GELU"
        logger.info("CLIP %s, %s: %s, sha256 %s", clip.NAME, activation, place, source.sha256)
        return (
            tower
            | options
            | {
                "prompts": prompts,
                "double_cls_embed": clip.DOUBLE_CLS_EMBED,
                "state": state,
                "weights_path": str(source.path or ""),
            }
        )

    @property
    def key_width(self) -> int:
        """See `FrozenTower.key_width`."""
        return len(self.class_embedding)

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

    @torch.no_grad()
    def plain(self, images: Tensor) -> Tensor:
        """Encode normalised images as CLIP was published, without prompts, as MaskCLIP reads it.

        Args:
            images: (N, 3, H, W) float, H and W multiples of the patch size.

        Returns:
            (N, D, h, w) float32 patch vectors, unit length over D (arXiv 2112.01071, section 3.2).
        """
        tokens, grid = self.embed(images, cls_weight=1)
        blocks = self.active_blocks()
        tokens = self.ln_pre(tokens)
        for block in blocks[:-1]:
            tokens = block(tokens)
        tokens, _ = run_last_block(blocks[-1], tokens, "maskclip", grid)
        return _as_map(self._projected(tokens[:, 1:]), grid)

    @property
    def _reads_class_token(self) -> bool:
        return self.pool_type == "tok" and self.attn_pool is None

    def embed(
        self, images: Tensor, positions: Tensor | None = None, cls_weight: int | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Return (N, 1 + h*w, W) tokens before ``ln_pre``, class token first, and (h, w).

        The class embedding counts ``cls_weight`` times, if given.
        """
        patches = self.patch_embed(images)
        grid = (patches.shape[-2], patches.shape[-1])
        positions = self._positions(grid) if positions is None else positions
        cls_weight = cls_weight or (2 if self.double_cls_embed else 1)
        cls = positions[:1] + self.class_embedding * cls_weight
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
            tokens = self.run_block(block, tokens)
        if self.last_block != "clip":
            dense, keys = run_last_block(blocks[-1], tokens, self.last_block, grid)
            return dense, dense if self._reads_class_token else blocks[-1](tokens), keys
        tokens = torch.cat([tokens[:, :1], tokens[:, -num_patches:]], dim=1)
        return tokens, tokens, None

    def active_blocks(self) -> Sequence[Block]:
        """Return the blocks of training, or their copies in the type of inference."""
        return self.in_inference_dtype(self.blocks, self._converted_blocks)

    def _converted_blocks(self) -> tuple[Block, ...]:
        blocks = tuple(block.converted(self.inference_dtype) for block in self.blocks)
        self.compiled(blocks)
        return blocks

    def for_inference(self) -> CLIPViT:
        """Return it with blocks in the type of inference as its own, for graphs; never trained."""
        if self.inference_dtype is torch.float32:
            return self
        # Neither the float32 blocks nor the cache are copied on the way.
        known = {id(self.blocks): nn.ModuleList(self.active_blocks()), id(self._converted): {}}
        model = copy.deepcopy(self, known)
        model.inference_dtype = torch.float32
        return model

    def project(self, tokens: Tensor) -> Tensor:
        """Post-norms and projection: (N, L, W) -> (N, L, D) float32 unit vectors.

        Each token goes through what CLIP's image vector goes through, with an attention pool
        through its value path.
        """
        return self._projected(self._post_norm(tokens))

    def _projected(self, tokens: Tensor) -> Tensor:
        if self.attn_pool is not None:
            tokens = self.attn_pool.values(tokens)
        return unit(self.ln_post(tokens) @ self.proj)

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
        return unit((self.ln_post(tokens) @ self.proj).float().mean(1))

    def _post_norm(self, tokens: Tensor) -> Tensor:
        return tokens if self.prompts is None else self.prompts.norm(tokens)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the (1 + h*w, W) position table for a grid."""
        return self.positions_of(self.positional_embedding, self.grid_size, grid)

    def _load_clip(self, state: Mapping[str, Tensor], path: str) -> None:
        renamed = {}
        for name, tensor in state.items():
            for old, new in () if name.startswith("attn_pool.") else _RENAMED:
                name = name.replace(old, new)
            renamed[name] = tensor
        table = renamed.get("positional_embedding")
        grid = None if table is None else square_grid(table)
        if grid and grid != self.grid_size:
            logger.info("CLIP's position table of %dx%d is resized to %dx%d",
                        *grid, *self.grid_size)  # fmt: skip
            table = resize_positions(table, grid, self.grid_size, self.pos_embed_resize)
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
