"""One block of CLIP's vision transformer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["Block", "attend"]

_HALF = (torch.bfloat16, torch.float16)


class _QuickGELUFunction(torch.autograd.Function):
    """Keeps x alone for the backward pass, instead of x and the sigmoid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _quick_gelu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """grad (s + 1.702 x s (1 - s)), s = sigmoid(1.702 x), in two new tensors."""
        (x,) = ctx.saved_tensors
        s = torch.mul(x, 1.702).sigmoid_()
        inner = grad * x
        torch.ops.aten.sigmoid_backward.grad_input(inner, s, grad_input=inner)
        return inner.mul_(1.702).add_(s.mul_(grad))


def _quick_gelu(x: Tensor) -> Tensor:
    """One new tensor, not three."""
    return torch.mul(x, 1.702).sigmoid_().mul_(x)


class QuickGELU(nn.Module):
    """OpenAI's approximation x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return _QuickGELUFunction.apply(x)
        return _quick_gelu(x)


class Attention(nn.Module):
    """Multi-head self-attention with packed query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(attend(*self.split(x)))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value of (N, L, W) tokens, (N, heads, L, C) each."""
        n, length, width = x.shape
        qkv = self.qkv(x).view(n, length, 3, self.heads, width // self.heads)
        return qkv.permute(2, 0, 3, 1, 4).unbind()

    def join(self, mixed: Tensor) -> Tensor:
        """Project mixed values of all heads: (N, heads, L, C) -> (N, L, W)."""
        return self.proj(mixed.transpose(1, 2).flatten(2))


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention: (N, heads, L, C), keys and values of M tokens -> (N, heads, L, C).

    Args:
        query: (N, heads, L, C).
        key: (N, heads, M, C).
        value: (N, heads, M, C).
        bias: (L, M), added to the scaled products.
    """
    if query.is_cpu and query.dtype in _HALF and not torch.is_grad_enabled():
        return _attend_by_heads(query, key, value, bias)
    bias = None if bias is None else bias.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, bias)


def _attend_by_heads(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of (N, heads, L, C) in half precision on a CPU; weights are made in float32.

    torch's fused kernel is no quicker there than in float32. One head after the other, whose L x L
    weights stay in the cache, takes three quarters of its time and rounds no more.
    """
    mixed, scale = torch.empty_like(query), query.shape[-1] ** -0.5
    query, key, value = (
        (query.float() * scale).contiguous(),
        key.float().contiguous(),
        value.contiguous(),
    )
    for head in range(query.shape[1]):
        products = query[:, head] @ key[:, head].mT
        weights = torch.softmax(products if bias is None else products + bias, dim=-1)
        mixed[:, head] = weights.to(value.dtype) @ value[:, head]
    return mixed


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
        self.matrix_dtype: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.feed_forward(x + self.attn(self.matrices_input(self.ln_1(x))))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Add the MLP, the second half of the block."""
        return x + self.mlp(self.matrices_input(self.ln_2(x)))

    def matrices_input(self, x: Tensor) -> Tensor:
        """Return it in the type of the matrices."""
        return x if self.matrix_dtype is None else x.to(self.matrix_dtype)

    def converted(self, dtype: torch.dtype) -> Block:
        """Return a copy with matrices of another type; sums and norms stay in float32.

        What the matrices add to the tokens is rounded, the tokens are not: twelve blocks would
        round them 24 times.
        """
        block = copy.deepcopy(self)
        block.attn.to(dtype)
        block.mlp.to(dtype)
        block.matrix_dtype = dtype
        return block
