"""Transformer decoder whose attention logits are the class masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagclip.config.checks import check_value
from tagclip.errors import ConfigError

__all__ = ["MaskDecoder"]


class SelfAttention(nn.Module):
    """Post-norm self-attention among the queries: q <- LN(q + drop(SA(q)))."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor) -> Tensor:
        q, k, v = (_split_heads(x, self.heads) for x in self.qkv(queries).chunk(3, dim=-1))
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.norm(queries + self.dropout(self.proj(_merge_heads(mixed))))


class MatchingLayer(nn.Module):
    """Optional self-attention, cross-attention to the patches, FFN; post-norm residuals."""

    def __init__(self, dim: int, heads: int, dropout: float, self_attention: bool) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, dropout
        self.self_attention = SelfAttention(dim, heads, dropout) if self_attention else None
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(
            nn.Linear(dim, 4 * dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4 * dim, dim),
            nn.Dropout(dropout),
        )
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, Q, D) queries, (N, n, D) projected key and value -> (N, Q, D)."""
        if self.self_attention is not None:
            queries = self.self_attention(queries)
        mixed = F.scaled_dot_product_attention(
            _split_heads(self.query(queries), self.heads),
            _split_heads(key, self.heads),
            _split_heads(value, self.heads),
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        queries = self.norm(queries + self.dropout(self.proj(_merge_heads(mixed))))
        return self.ffn_norm(queries + self.ffn(queries))


class MatchingLogits(nn.Module):
    """The last layer: optional self-attention, then attention logits only."""

    def __init__(self, dim: int, heads: int, dropout: float, self_attention: bool) -> None:
        super().__init__()
        self.self_attention = SelfAttention(dim, heads, dropout) if self_attention else None
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        # The mean over heads of q_h k_h / sqrt(dim / heads) is one product of whole vectors.
        self.scale = (dim // heads) ** -0.5 / heads

    def forward(self, queries: Tensor, key: Tensor) -> Tensor:
        """(N, Q, D) queries, (N, n, D) projected key -> (N, Q, n) float32 logits."""
        if self.self_attention is not None:
            queries = self.self_attention(queries)
        query = self.query(queries)
        # Sigmoid and losses see these numbers directly: no half-precision product.
        with torch.autocast(query.device.type, enabled=False):
            return (query.float() * self.scale) @ key.float().transpose(1, 2)


class MaskDecoder(nn.Module):
    """Class queries attend to patches; the last layer's logits are the masks.

    docs/method.md, section 4: the logits are the mean over heads of the last layer's
    (q W_q)_h (m W_k)_h^T / sqrt(dim / heads), before any softmax. What cannot influence them (the
    last layer's value, projection, FFN and norms) does not exist.
    """

    def __init__(
        self, *, dim: int, num_heads: int = 8, layers: str = "ann", dropout: float = 0.1
    ) -> None:
        """Create the layers, every matrix Xavier-uniform (docs/method.md, section 7).

        Args:
            dim: channels D.
            num_heads: attention heads, divide ``dim``.
            layers: one letter per layer, ``a`` with and ``n`` without self-attention.
            dropout: on attention weights, projections and inside the FFN.

        Raises:
            ConfigError: letters or heads do not make sense.
        """
        super().__init__()
        check_value("MODEL.TAGCLIP.LAYERS", layers)
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(
                f"MODEL.TAGCLIP.NUM_HEADS: found {num_heads}, expected a divisor of the CLIP "
                f"embedding size {dim}"
            )
        *inner, last = (letter == "a" for letter in layers)
        self.layers = nn.ModuleList(MatchingLayer(dim, num_heads, dropout, a) for a in inner)
        self.logits = MatchingLogits(dim, num_heads, dropout, last)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith(("self_attention.qkv.bias", "self_attention.proj.bias")):
                nn.init.zeros_(parameter)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Match queries to patches.

        Args:
            queries: (N, Q, D).
            memory: (N, n, D) patch vectors.

        Returns:
            (N, Q, n) float32 logits, under autocast too.
        """
        *projected, key = self._project_memory(memory)
        for index, layer in enumerate(self.layers):
            queries = layer(queries, projected[2 * index], projected[2 * index + 1])
        return self.logits(queries, key)

    def _project_memory(self, memory: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of all layers in one product; the last layer has a key only."""
        parts = [part for layer in self.layers for part in (layer.key, layer.value)]
        parts.append(self.logits.key)
        weight = torch.cat([part.weight for part in parts])
        bias = torch.cat([part.bias for part in parts])
        return F.linear(memory, weight, bias).chunk(len(parts), dim=-1)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, D) -> (N, heads, L, D / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge_heads(x: Tensor) -> Tensor:
    """(N, heads, L, D / heads) -> (N, L, D)."""
    return x.transpose(1, 2).flatten(2)
