"""CLIP's last block as training-free dense methods run it (docs/method.md, section 3).

Their attention asks which patches are alike, where CLIP's asks what the image is about.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tagclip.config.checks import check_value
from tagclip.errors import ConfigError
from tagclip.modeling.backbone.prompts import DeepPrompts
from tagclip.modeling.backbone.vit_block import Block, attend

__all__ = [
    "KEEPS_RESIDUAL",
    "check_last_block",
    "keys_of_patches",
    "mix_values",
    "neighbourhood",
    "run_last_block",
]

KEEPS_RESIDUAL = ("sclip",)
"""Methods with residual and MLP; the others keep the attention's output alone."""
# Standard deviation of NACLIP's window, in patches.
_NEIGHBOURHOOD_STD = 5.0


def check_last_block(method: str, prompts: DeepPrompts | None) -> None:
    """Refuse what MODEL.CLIP.LAST_BLOCK cannot be.

    Raises:
        ConfigError: the word is unknown, or there are prompts with another than ``clip``.
    """
    check_value("MODEL.CLIP.LAST_BLOCK", method)
    if method != "clip" and prompts is not None:
        raise ConfigError(
            f"MODEL.CLIP.LAST_BLOCK: found {method!r} with learned prompts, expected clip, "
            "or MODEL.CLIP.PROMPT.NUM_TOKENS 0"
        )


def mix_values(
    method: str, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int], prefix: int = 1
) -> Tensor:
    """Mix the values of the last block, heads apart.

    Args:
        method: ``maskclip`` (arXiv 2112.01071), ``sclip`` (2312.01597), ``clearclip``
            (2407.12442) or ``naclip`` (2404.08181).
        query: (N, heads, L, C) float.
        key: the same.
        value: the same.
        grid: (h, w) of the patches, the last h*w of the L tokens.
        prefix: number of tokens before them, L - h*w, such as the class token.

    Returns:
        (N, heads, L, C).
    """
    if method == "maskclip":
        return value
    if method == "sclip":
        return attend(query, query, value) + attend(key, key, value)
    if method == "clearclip":
        return attend(query, query, value)
    bias = F.pad(neighbourhood(grid, value.device), (prefix, 0, prefix, 0))
    return attend(key, key, value, bias)


def neighbourhood(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """NACLIP's window of each patch: exp(-d^2 / (2 std^2)) at a distance of d patches.

    Returns:
        (h*w, h*w) float32, 1 on the diagonal.
    """
    sides = (torch.arange(side, device=device, dtype=torch.float) for side in grid)
    rows, columns = (
        torch.exp((side[:, None] - side).square() / (-2 * _NEIGHBOURHOOD_STD**2)) for side in sides
    )
    # Their Kronecker product; torch.kron is exported with the sizes of one image.
    return (rows[:, None, :, None] * columns[None, :, None]).flatten(2).flatten(0, 1)


def run_last_block(
    block: Block, tokens: Tensor, method: str, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Run the block; the class token, which comes first, goes through it as in CLIP.

    Args:
        block: CLIP's last one.
        tokens: (N, 1 + h*w, W).
        method: see `mix_values`.
        grid: (h, w).

    Returns:
        Tokens (N, 1 + h*w, W) and the keys of the patches, (N, h*w, W) float32, all heads one
        after the other.
    """
    query, key, value = block.attn.split(block.matrices_input(block.ln_1(tokens)))
    own = attend(query[:, :, :1], key, value)
    mixed = mix_values(method, query, key, value, grid)
    mixed = block.attn.join(torch.cat([own, mixed[:, :, 1:]], dim=2))
    mixed = block.ls_1(block.ln_attn(mixed))
    if method in KEEPS_RESIDUAL:
        tokens = block.feed_forward(tokens + mixed)
    else:
        own = block.feed_forward(tokens[:, :1] + mixed[:, :1])
        tokens = torch.cat([own, mixed[:, 1:].to(own.dtype)], dim=1)
    return tokens, keys_of_patches(key, 1)


def keys_of_patches(key: Tensor, prefix: int) -> Tensor:
    """(N, heads, prefix + n, C) -> (N, n, W) float32, all heads one after the other."""
    return key[:, :, prefix:].transpose(1, 2).flatten(2).float()
