"""One block of CLIP's vision transformer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["Block", "QuickGELU", "attend"]

Norm = Callable[[int], nn.Module]
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

    def __init__(
        self, width: int, heads: int, norm: Norm = nn.LayerNorm, parts: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.heads, head_width = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.ln_q = norm(head_width) if "qk_norm" in parts else nn.Identity()
        self.ln_k = norm(head_width) if "qk_norm" in parts else nn.Identity()
        has_scale = "scale_heads" in parts
        self.head_scale = nn.Parameter(torch.ones(heads, 1, 1)) if has_scale else None
        self.ln_inner = norm(width) if "scale_attn_inner" in parts else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(attend(*self.split(x)))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value of (N, L, W) tokens, (N, heads, L, C) each."""
        n, length, width = x.shape
        qkv = self.qkv(x).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return self.ln_q(query), self.ln_k(key), value

    def join(self, mixed: Tensor) -> Tensor:
        """Project mixed values of all heads: (N, heads, L, C) -> (N, L, W)."""
        if self.head_scale is not None:
            mixed = mixed * self.head_scale
        return self.proj(self.ln_inner(mixed.transpose(1, 2).flatten(2)))


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

    def __init__(self, width: int, hidden: int, act: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = act
        self.ln = norm
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.ln(self.act(self.fc1(x))))


class LayerScale(nn.Module):
    """A factor for each channel (CaiT, arXiv 2103.17239)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block: (N, L, W) -> (N, L, W)."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        act: nn.Module,
        norm: Norm = nn.LayerNorm,
        parts: Collection[str] = (),
    ) -> None:
        """Build it.

        Args:
            width: channels of the tokens, W.
            heads: attention heads, divide ``width``.
            hidden: channels inside the MLP.
            act: its activation.
            norm: makes a norm of so many channels.
            parts: what CLIP's own block does not have, by open_clip's options: ``ls_init_value``,
                ``qk_norm``, ``scale_heads``, ``scale_attn_inner``, ``scale_attn``, ``scale_fc``.
        """
        super().__init__()
        self.ln_1 = norm(width)
        self.attn = Attention(width, heads, norm, parts)
        self.ln_attn = norm(width) if "scale_attn" in parts else nn.Identity()
        self.ls_1 = LayerScale(width) if "ls_init_value" in parts else nn.Identity()
        self.ln_2 = norm(width)
        self.mlp = MLP(width, hidden, act, norm(hidden) if "scale_fc" in parts else nn.Identity())
        self.ls_2 = LayerScale(width) if "ls_init_value" in parts else nn.Identity()
        self.matrix_dtype: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls_1(self.ln_attn(self.attn(self.matrices_input(self.ln_1(x)))))
        return self.feed_forward(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Add the MLP, the second half of the block."""
        return x + self.ls_2(self.mlp(self.matrices_input(self.ln_2(x))))

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
