"""One block of CLIP's vision transformer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["Block"]

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
        n, length, width = x.shape
        qkv = self.qkv(x).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if qkv.is_cpu and qkv.dtype in _HALF and not torch.is_grad_enabled():
            mixed = _attend_by_heads(query, key, value)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(n, length, width))


def _attend_by_heads(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
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
        weights = torch.softmax(query[:, head] @ key[:, head].mT, dim=-1)
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
        x = x + self.attn(self._for_matrices(self.ln_1(x)))
        return x + self.mlp(self._for_matrices(self.ln_2(x)))

    def _for_matrices(self, x: Tensor) -> Tensor:
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
