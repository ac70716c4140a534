"""What CLIP's image towers have in common: frozen, with a dense and a global vector."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tagclip.config.checks import check_value
from tagclip.errors import ConfigError
from tagclip.modeling.backbone.last_block import check_last_block
from tagclip.modeling.backbone.positions import resize_positions
from tagclip.modeling.backbone.prompts import DeepPrompts
from tagclip.modeling.clip.preprocessing import compare_with_weights
from tagclip.modeling.clip.source import CLIPSource
from tagclip.modeling.precision import inference_dtype

__all__ = ["FrozenTower", "build_prompts", "unit"]


class FrozenTower(Backbone):
    """CLIP's image tower as a detectron2 backbone; prompts are all that is trained of it."""

    is_timm = False
    """Which of open_clip's towers the class is made for."""

    def __init__(
        self,
        *,
        embed_dim: int,
        prompts: DeepPrompts | None,
        pos_embed_resize: str,
        last_block: str,
        use_checkpoint: bool,
        compile_blocks: bool,
        inference_dtype: torch.dtype,
        weights_sha256: str,
        pixel_statistics: Mapping[str, Sequence[float]] | None,
    ) -> None:
        """Check and keep what does not depend on the network.

        Args:
            embed_dim: channels of the output, D.
            prompts: trainable prompts; None is plain CLIP. The class keeps them when its own parts
                are there and frozen.
            pos_embed_resize: ``bilinear`` or ``bicubic`` for other grids.
            last_block: ``clip``, or a method of `mix_values` for the patches, without prompts.
            use_checkpoint: recompute each block in the backward pass.
            compile_blocks: `torch.compile` them, when they are first called.
            inference_dtype: of the matrices outside training.
            weights_sha256: recorded in checkpoints and compared when they are loaded.
            pixel_statistics: recorded in checkpoints, see `CLIPSource.pixel_statistics`.

        Raises:
            ConfigError: a word is unknown, or the last block and prompts exclude each other.
        """
        super().__init__()
        check_value("MODEL.CLIP.POS_EMBED_RESIZE", pos_embed_resize)
        check_last_block(last_block, prompts)
        self.embed_dim, self.pos_embed_resize = embed_dim, pos_embed_resize
        self.last_block, self.use_checkpoint = last_block, use_checkpoint
        self.compile_blocks, self.inference_dtype = compile_blocks, inference_dtype
        self.weights_sha256, self.pixel_statistics = weights_sha256, pixel_statistics
        self._converted: dict[tuple, Any] = {}
        self._position_cache: dict[tuple, Tensor] = {}

    @classmethod
    def options(cls, cfg: CfgNode, source: CLIPSource) -> dict[str, Any]:
        """Return the keyword arguments that `__init__` takes but for width and prompts.

        Raises:
            ConfigError: the class is not made for the image tower of ``source``.
        """
        if source.is_timm != cls.is_timm:
            kind = "one that open_clip builds on timm" if source.is_timm else "open_clip's own ViT"
            raise ConfigError(
                f"MODEL.BACKBONE.NAME: found {cls.__name__}, but the image tower of "
                f"MODEL.CLIP.NAME {source.name} is {kind}; set MODEL.BACKBONE.NAME to "
                "build_clip_backbone, which takes both"
            )
        compare_with_weights(cfg, source)
        return {
            "pos_embed_resize": cfg.MODEL.CLIP.POS_EMBED_RESIZE,
            "last_block": cfg.MODEL.CLIP.LAST_BLOCK,
            "use_checkpoint": cfg.MODEL.BACKBONE.CHECKPOINT,
            "compile_blocks": cfg.MODEL.COMPILE,
            "inference_dtype": inference_dtype(cfg.TEST.DTYPE, cfg.MODEL.DEVICE),
            "weights_sha256": source.sha256,
            "pixel_statistics": source.pixel_statistics,
        }

    @property
    def size_divisibility(self) -> int:
        """Images must be padded to a multiple of the patch, or of a map's stride."""
        return self.patch_size

    @property
    def key_width(self) -> int:
        """Channels of the last block's keys, all heads together."""
        raise NotImplementedError

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of the outputs."""
        shapes = {
            "clip_dense": ShapeSpec(channels=self.embed_dim, stride=self.patch_size),
            "clip_global": ShapeSpec(channels=self.embed_dim),
        }
        if self.last_block != "clip":
            shapes["clip_keys"] = ShapeSpec(channels=self.key_width, stride=self.patch_size)
        return shapes

    def run_block(self, block: nn.Module, *args: Any, **options: Any) -> Tensor:
        """Call a block, recomputed in the backward pass if that is asked for."""
        if self.use_checkpoint and self.training:
            return checkpoint(block, *args, use_reentrant=False, **options)
        return block(*args, **options)

    def compiled(self, blocks: Iterable[nn.Module]) -> None:
        """Compile blocks, if that is asked for, when they are first called."""
        for block in blocks if self.compile_blocks else ():
            block.compile()

    def in_inference_dtype(self, part: nn.Module, convert: Callable[[], Any]) -> Any:
        """Return a part of training, or what ``convert`` makes of it for inference.

        That is made once; frozen as it is, the part changes by loading or moving only.
        """
        if self.training or self.inference_dtype is torch.float32:
            return part
        key = tuple(map(_identity, part.parameters()))
        # A name of its own: another thread may replace the cache at any time.
        cache = self._converted
        if key not in cache:
            self._converted = cache = {key: convert()}
        return cache[key]

    def positions_of(
        self, table: Tensor, old: tuple[int, int], grid: tuple[int, int], num_prefix: int = 1
    ) -> Tensor:
        """Return `resize_positions` of a table; frozen, so computed once for a grid."""
        if grid == old:
            return table
        key = (grid, _identity(table))
        cache = self._position_cache
        if key not in cache:
            resized = resize_positions(table, old, grid, self.pos_embed_resize, num_prefix)
            self._position_cache = cache = {key: resized}
        return cache[key]


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


def unit(vectors: Tensor) -> Tensor:
    """Return vectors as float32 of length 1 over the last dimension."""
    vectors = vectors.float()
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _identity(tensor: Tensor) -> Hashable:
    """A key that changes when a tensor is moved, replaced or written to."""
    # Tensors made in inference mode count no versions.
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.device, tensor.dtype
