"""CLIP's vision transformer as a detectron2 backbone: dense and global unit vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.backbone.clip_source import CLIPSource
from tagclip.modeling.backbone.prompts import DeepPrompts

__all__ = ["CLIPViT"]

# open_clip's names inside `visual.`, and ours.
_RENAMED = (
    ("transformer.resblocks.", "blocks."),
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj.", "attn.proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
    ("conv1.", "patch_embed."),
)


class QuickGELU(nn.Module):
    """OpenAI's approximation x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention with packed query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(n, length, width))


class MLP(nn.Module):
    """Two linear layers around the activation."""

    def __init__(self, width: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = QuickGELU() if quick_gelu else nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: (N, L, W) -> (N, L, W)."""

    def __init__(self, width: int, heads: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, hidden, quick_gelu)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


@BACKBONE_REGISTRY.register()
class CLIPViT(Backbone):
    """Frozen CLIP ViT with trainable deep prompts (TagCLIP paper, section 3.1).

    The mathematics is that of the golden README, section 3.
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
        pos_embed_resize: str = "bilinear",
        double_cls_embed: bool = True,
        use_checkpoint: bool = False,
        state: Mapping[str, Tensor] | None = None,
        weights_sha256: str = "",
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
            pos_embed_resize: ``bilinear`` or ``bicubic`` for other grids.
            double_cls_embed: count the class embedding twice, as the released code.
            use_checkpoint: recompute each block in the backward pass.
            state: open_clip's ``visual.`` tensors without that prefix; None keeps random ones.
            weights_sha256: recorded in checkpoints and compared when they are loaded.

        Raises:
            ConfigError: the resize mode is unknown.
            CheckpointError: ``state`` does not fit.
        """
        super().__init__()
        if pos_embed_resize not in ("bilinear", "bicubic"):
            raise ConfigError(
                f"MODEL.CLIP.POS_EMBED_RESIZE: found {pos_embed_resize!r}, "
                "expected bilinear or bicubic"
            )
        self.patch_size, self.grid_size, self.embed_dim = patch_size, tuple(grid_size), embed_dim
        self.pos_embed_resize = pos_embed_resize
        self.double_cls_embed = double_cls_embed
        self.use_checkpoint = use_checkpoint
        self.weights_sha256 = weights_sha256
        self.patch_embed = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        positions = 1 + grid_size[0] * grid_size[1]
        self.positional_embedding = nn.Parameter(torch.randn(positions, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width) if ln_pre else nn.Identity()
        self.blocks = nn.ModuleList(Block(width, heads, hidden, quick_gelu) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)
        if state is not None:
            self._load_clip(state)
        self.requires_grad_(False)
        self.prompts = prompts
        self._position_cache: dict[tuple, Tensor] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        clip, prompt = cfg.MODEL.CLIP, cfg.MODEL.CLIP.PROMPT
        source = CLIPSource.from_config(cfg)
        tower = source.vision_config()
        depth = prompt.DEPTH or tower["layers"]
        if not 1 <= depth <= tower["layers"]:
            raise ConfigError(
                f"MODEL.CLIP.PROMPT.DEPTH: found {prompt.DEPTH}, expected 0 to {tower['layers']}, "
                f"the layers of {clip.NAME}"
            )
        prompts = None
        if prompt.NUM_TOKENS > 0:
            prompts = DeepPrompts(
                num_tokens=prompt.NUM_TOKENS,
                width=tower["width"],
                depth=depth,
                patch_size=tower["patch_size"],
                dropout=prompt.DROPOUT,
                post_norm=prompt.POST_NORM,
            )
        return tower | {
            "prompts": prompts,
            "pos_embed_resize": clip.POS_EMBED_RESIZE,
            "double_cls_embed": clip.DOUBLE_CLS_EMBED,
            "use_checkpoint": cfg.MODEL.BACKBONE.CHECKPOINT,
            "state": source.vision_state(),
            "weights_sha256": source.sha256,
        }

    @property
    def size_divisibility(self) -> int:
        """Images must be padded to a multiple of the patch."""
        return self.patch_size

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of both outputs."""
        return {
            "clip_dense": ShapeSpec(channels=self.embed_dim, stride=self.patch_size),
            "clip_global": ShapeSpec(channels=self.embed_dim),
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Encode normalised images.

        Args:
            images: (N, 3, H, W) float, H and W multiples of the patch size.

        Returns:
            ``clip_dense`` (N, D, h, w) and ``clip_global`` (N, D), float32, unit length over D.
        """
        tokens, (rows, columns) = self.embed(images)
        tokens = self.encode(tokens, rows * columns)
        vectors = self.project(tokens)
        dense = vectors[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))
        return {"clip_dense": dense, "clip_global": vectors[:, 0]}

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return (N, 1 + h*w, W) tokens before ``ln_pre``, class token first, and (h, w)."""
        patches = self.patch_embed(images)
        grid = (patches.shape[-2], patches.shape[-1])
        positions = self._positions(grid)
        cls = positions[:1] + self.class_embedding * (2 if self.double_cls_embed else 1)
        patches = patches.flatten(2).transpose(1, 2) + positions[1:]
        return torch.cat([cls.expand(len(images), 1, -1), patches], dim=1), grid

    def encode(self, tokens: Tensor, num_patches: int) -> Tensor:
        """Run ``ln_pre`` and all blocks: (N, 1 + n, W) -> (N, 1 + n, W), prompts dropped."""
        tokens = self.ln_pre(tokens)
        prompts = self.prompts.project() if self.prompts is not None else ()
        for index, block in enumerate(self.blocks):
            if self.prompts is not None and index <= len(prompts):
                layer = prompts[index] if index < len(prompts) else None
                tokens = self.prompts.insert(tokens, layer, num_patches)
            if self.use_checkpoint and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return torch.cat([tokens[:, :1], tokens[:, -num_patches:]], dim=1)

    def project(self, tokens: Tensor) -> Tensor:
        """Post-norms and projection: (N, L, W) -> (N, L, D) float32 unit vectors."""
        if self.prompts is not None:
            tokens = self.prompts.norm(tokens)
        vectors = (self.ln_post(tokens) @ self.proj).float()
        return vectors / vectors.norm(dim=-1, keepdim=True)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the (1 + h*w, W) position table for a grid; frozen, so computed once."""
        table = self.positional_embedding
        if grid == self.grid_size:
            return table
        key = (grid, table.device, table.dtype, table.data_ptr(), table._version)
        if key not in self._position_cache:
            patches = table[1:].T.unflatten(1, self.grid_size)[None]
            resized = F.interpolate(
                patches,
                grid,
                mode=self.pos_embed_resize,
                align_corners=False,
                # open_clip's own resize is bicubic with antialiasing.
                antialias=self.pos_embed_resize == "bicubic",
            )
            self._position_cache.clear()
            self._position_cache[key] = torch.cat([table[:1], resized[0].flatten(1).T])
        return self._position_cache[key]

    def _load_clip(self, state: Mapping[str, Tensor]) -> None:
        renamed = {}
        for name, tensor in state.items():
            for old, new in _RENAMED:
                name = name.replace(old, new)
            renamed[name] = tensor
        own = self.state_dict()
        wrong = [f"{n} is missing" for n in sorted(own.keys() - renamed.keys())]
        wrong += [f"{n} is unknown" for n in sorted(renamed.keys() - own.keys())]
        wrong += [
            f"{n} is {tuple(renamed[n].shape)} instead of {tuple(own[n].shape)}"
            for n in sorted(own.keys() & renamed.keys())
            if own[n].shape != renamed[n].shape
        ]
        if wrong:
            raise CheckpointError(
                f"CLIP's vision weights do not fit the model config: {'; '.join(wrong[:5])}"
                f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}; "
                "check MODEL.CLIP.NAME and MODEL.CLIP.PRETRAINED"
            )
        self.load_state_dict(renamed)
