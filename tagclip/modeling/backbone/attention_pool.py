"""The attention pool with which CoCa's image tower ends."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AttentionPool"]


class AttentionPool(nn.Module):
    """Learned queries that attend to all tokens (CoCa, arXiv 2205.01917, section 3.2).

    Parameters have the names of open_clip's ``AttentionalPooler``.
    """

    def __init__(self, width: int, dim: int, heads: int, num_queries: int) -> None:
        """Create the queries.

        Args:
            width: channels of the tokens, W.
            dim: channels of queries and result, D.
            heads: attention heads, divide ``dim``.
            num_queries: Q.
        """
        super().__init__()
        self.query = nn.Parameter(torch.randn(num_queries, dim))
        self.attn = nn.MultiheadAttention(dim, heads, kdim=width, vdim=width, batch_first=True)
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(width)

    def forward(self, tokens: Tensor, queries: slice) -> Tensor:
        """Return what some of the queries read of (N, L, W) tokens: (N, number of them, D)."""
        tokens = self.ln_k(tokens)
        query = self.ln_q(self.query[queries]).expand(len(tokens), -1, -1)
        return self.attn(query, tokens, tokens, need_weights=False)[0]

    def values(self, tokens: Tensor) -> Tensor:
        """Return what a query would read that attends to one token alone, of each token.

        The attention is left out as in MaskCLIP (arXiv 2112.01071, section 3.2).

        Args:
            tokens: (N, L, W).

        Returns:
            (N, L, D).
        """
        attn = self.attn
        # torch packs the three matrices where W is D.
        weight = attn.v_proj_weight if attn.in_proj_weight is None else attn.in_proj_weight
        size = attn.embed_dim
        values = F.linear(self.ln_k(tokens), weight[-size:], attn.in_proj_bias[-size:])
        return attn.out_proj(values)
