"""CLIP's vision transformer with deep prompts, written plainly in float64 from its formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor


class NaivePrompts(NamedTuple):
    """Prompt tokens (depth, P, W), their shared projection, and the norm before ``ln_post``."""

    tokens: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    norm: tuple[np.ndarray, np.ndarray] | None


def to_float64(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Turn tensors into float64 arrays."""
    return {name: tensor.detach().double().numpy() for name, tensor in state.items()}


def resize_matrix(old: int, new: int, mode: str) -> np.ndarray:
    """(new, old) weights of one axis: half-pixel centres, antialiasing for bicubic only."""
    weights = np.zeros((new, old))
    scale = old / new
    for i in range(new):
        centre = (i + 0.5) * scale
        if mode == "bilinear":
            position = max(centre - 0.5, 0.0)
            low = min(int(position), old - 1)
            high = min(low + 1, old - 1)
            weights[i, low] += 1 - (position - low)
            weights[i, high] += position - low
        else:
            stretch = max(scale, 1.0)
            for j in range(old):
                weights[i, j] = _cubic((j + 0.5 - centre) / stretch)
            weights[i] /= weights[i].sum()
    return weights


def _cubic(x: float, a: float = -0.5) -> float:
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return 0.0


def naive_positions(
    table: np.ndarray, old: tuple[int, int], new: tuple[int, int], mode: str
) -> np.ndarray:
    """(1 + rows * columns, W) position table on another grid."""
    rows, columns = (resize_matrix(o, n, mode) for o, n in zip(old, new, strict=True))
    grid = table[1:].reshape(*old, -1)
    resized = np.einsum("yr,xc,rcw->yxw", rows, columns, grid)
    return np.concatenate([table[:1], resized.reshape(new[0] * new[1], -1)])


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Normalise the last axis."""
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def quick_gelu(x: np.ndarray) -> np.ndarray:
    """OpenAI's activation."""
    return x / (1 + np.exp(-1.702 * x))


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact activation."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(x: np.ndarray, p: Mapping[str, np.ndarray], name: str, heads: int) -> np.ndarray:
    """Self-attention over (L, W) tokens, one head after the other."""
    width = x.shape[1]
    size = width // heads
    packed = x @ p[f"{name}.in_proj_weight"].T + p[f"{name}.in_proj_bias"]
    query, key, value = packed[:, :width], packed[:, width : 2 * width], packed[:, 2 * width :]
    mixed = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        mixed.append(scores / scores.sum(1, keepdims=True) @ value[:, part])
    joined = np.concatenate(mixed, axis=1)
    return joined @ p[f"{name}.out_proj.weight"].T + p[f"{name}.out_proj.bias"]


def block(
    x: np.ndarray, p: Mapping[str, np.ndarray], name: str, heads: int, activation: Callable
) -> np.ndarray:
    """One pre-norm block over (L, W) tokens."""
    normed = layer_norm(x, p[f"{name}.ln_1.weight"], p[f"{name}.ln_1.bias"], 1e-5)
    x = x + attention(normed, p, f"{name}.attn", heads)
    normed = layer_norm(x, p[f"{name}.ln_2.weight"], p[f"{name}.ln_2.bias"], 1e-5)
    inner = activation(normed @ p[f"{name}.mlp.c_fc.weight"].T + p[f"{name}.mlp.c_fc.bias"])
    return x + inner @ p[f"{name}.mlp.c_proj.weight"].T + p[f"{name}.mlp.c_proj.bias"]


def naive_vit(
    image: np.ndarray,
    p: Mapping[str, np.ndarray],
    *,
    heads: int,
    layers: int,
    old_grid: tuple[int, int],
    activation: Callable = quick_gelu,
    mode: str = "bilinear",
    class_embeddings: int = 1,
    prompts: NaivePrompts | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Encode one image.

    Args:
        image: (3, H, W).
        p: open_clip's ``visual.`` tensors without that prefix.
        heads: attention heads.
        layers: blocks.
        old_grid: (rows, columns) of the position table.
        activation: of the MLPs.
        mode: resize of the position table.
        class_embeddings: how often the class embedding is counted.
        prompts: deep prompts.

    Returns:
        (D,) class vector and (D, h, w) patch vectors, unit.
    """
    size = p["conv1.weight"].shape[-1]
    kernel = p["conv1.weight"].reshape(len(p["conv1.weight"]), -1)
    grid = image.shape[1] // size, image.shape[2] // size
    patches = []
    for y in range(grid[0]):
        for x in range(grid[1]):
            pixels = image[:, y * size : (y + 1) * size, x * size : (x + 1) * size]
            patches.append(kernel @ pixels.reshape(-1))
    positions = naive_positions(p["positional_embedding"], old_grid, grid, mode)
    tokens = np.stack([class_embeddings * p["class_embedding"], *patches]) + positions
    tokens = layer_norm(tokens, p["ln_pre.weight"], p["ln_pre.bias"], 1e-5)
    cls, patches = tokens[:1], tokens[1:]
    for index in range(layers):
        inserted = np.zeros((0, tokens.shape[1]))
        if prompts is not None and index < len(prompts.tokens):
            inserted = prompts.tokens[index] @ prompts.weight.T + prompts.bias
        tokens = np.concatenate([cls, inserted, patches])
        tokens = block(tokens, p, f"transformer.resblocks.{index}", heads, activation)
        # What the block made of the prompts is thrown away.
        cls, patches = tokens[:1], tokens[1 + len(inserted) :]
    tokens = np.concatenate([cls, patches])
    if prompts is not None and prompts.norm is not None:
        tokens = layer_norm(tokens, *prompts.norm, 1e-6)
    tokens = layer_norm(tokens, p["ln_post.weight"], p["ln_post.bias"], 1e-5) @ p["proj"]
    tokens = tokens / np.sqrt((tokens**2).sum(1, keepdims=True))
    return tokens[0], tokens[1:].T.reshape(-1, *grid)
