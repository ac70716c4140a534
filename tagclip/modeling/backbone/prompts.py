"""Deep visual prompts: learned tokens that join the patches in every layer of a frozen ViT."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["DeepPrompts"]


class DeepPrompts(nn.Module):
    """Learned tokens, replaced before every block (VPT-deep, arXiv 2203.12119).

    All layers share one projection (docs/method.md, section 3, step 4).
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        width: int,
        depth: int,
        patch_size: int,
        dropout: float = 0.1,
        post_norm: bool = True,
    ) -> None:
        """Create ``depth`` x ``num_tokens`` prompts.

        Args:
            num_tokens: prompts per layer, P.
            width: channels of the ViT, W.
            depth: layers that get prompts.
            patch_size: side of a patch in pixels; sets the scale of the initial values.
            dropout: on the projected prompts, drawn anew for every image.
            post_norm: add a LayerNorm that is applied to all tokens before CLIP's ``ln_post``.
        """
        super().__init__()
        bound = math.sqrt(6 / (3 * patch_size**2 + width))
        self.tokens = nn.Parameter(torch.empty(depth, num_tokens, width).uniform_(-bound, bound))
        self.proj = nn.Linear(width, width)
        nn.init.normal_(self.proj.weight, std=math.sqrt(2 / width))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=1e-6) if post_norm else nn.Identity()

    @property
    def depth(self) -> int:
        """Number of layers that get prompts."""
        return self.tokens.shape[0]

    def project(self) -> Tensor:
        """Return the (depth, P, W) prompts of all layers, in one matrix product."""
        return self.proj(self.tokens)

    def insert(
        self, tokens: Tensor, prompts: Tensor | None, num_patches: int, num_prefix: int = 1
    ) -> Tensor:
        """Replace whatever stands between the class token and the patches.

        Args:
            tokens: (N, 1 + any + n, W) with the class token first and the patches last.
            prompts: (P, W) of one layer; None leaves class token and patches only.
            num_patches: n.
            num_prefix: class and register tokens, where they are not one.

        Returns:
            (N, 1 + P + n, W).
        """
        parts = [tokens[:, :num_prefix], tokens[:, -num_patches:]]
        if prompts is not None:
            parts.insert(1, self.dropout(prompts.to(tokens.dtype).expand(tokens.shape[0], -1, -1)))
        return torch.cat(parts, dim=1)
