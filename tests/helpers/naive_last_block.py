"""The last block of training-free methods in float64, patch by patch, from the papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from helpers.naive_vit import layer_norm

METHODS = ("maskclip", "sclip", "clearclip", "naclip")


def naive_mix(
    method: str, query: np.ndarray, key: np.ndarray, value: np.ndarray, grid: tuple[int, int]
) -> np.ndarray:
    """(L, C) values of one head, mixed; the patches are the last rows * columns of L tokens."""
    length, prefix = len(value), len(value) - grid[0] * grid[1]
    pairs = {"sclip": [query, key], "clearclip": [query], "naclip": [key], "maskclip": []}[method]
    result = np.zeros_like(value) if pairs else value.copy()
    for vectors in pairs:
        for i in range(length):
            scores = np.empty(length)
            for j in range(length):
                scores[j] = vectors[i] @ vectors[j] / math.sqrt(vectors.shape[1])
                if method == "naclip" and i >= prefix and j >= prefix:
                    y, x = np.subtract(
                        divmod(i - prefix, grid[1]), divmod(j - prefix, grid[1])
                    ).tolist()
                    scores[j] += math.exp(-(y * y + x * x) / (2 * 5.0**2))
            weights = np.exp(scores - scores.max())
            result[i] += weights @ value / weights.sum()
    return result


def naive_last_block(
    x: np.ndarray,
    p: Mapping[str, np.ndarray],
    name: str,
    *,
    heads: int,
    activation: Callable,
    method: str,
    grid: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Patches (h*w, W) behind the block whose input is x (L, W), and their keys (h*w, W)."""
    normed = layer_norm(x, p[f"{name}.ln_1.weight"], p[f"{name}.ln_1.bias"], 1e-5)
    packed = normed @ p[f"{name}.attn.in_proj_weight"].T + p[f"{name}.attn.in_proj_bias"]
    query, key, value = np.split(packed, 3, axis=1)
    split = [np.split(part, heads, axis=1) for part in (query, key, value)]
    mixed = np.concatenate(
        [naive_mix(method, *parts, grid) for parts in zip(*split, strict=True)], 1
    )
    mixed = mixed @ p[f"{name}.attn.out_proj.weight"].T + p[f"{name}.attn.out_proj.bias"]
    patches = slice(len(x) - grid[0] * grid[1], None)
    if method == "sclip":
        x = x + mixed
        normed = layer_norm(x, p[f"{name}.ln_2.weight"], p[f"{name}.ln_2.bias"], 1e-5)
        inner = activation(normed @ p[f"{name}.mlp.c_fc.weight"].T + p[f"{name}.mlp.c_fc.bias"])
        mixed = x + inner @ p[f"{name}.mlp.c_proj.weight"].T + p[f"{name}.mlp.c_proj.bias"]
    return mixed[patches], key[patches]
