"""The names under which CLIP's tensors are stored: open_clip's, OpenAI's and transformers'."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from tagclip.utils.text import listed

__all__ = ["describe_misfit", "is_openai", "to_open_clip"]

# Sizes that OpenAI stores as tensors; nothing reads them.
_OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
# Constants that are no weights.
_CONSTANTS = ("attn_mask", "position_ids")

_TRANSFORMERS = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    # The first is transformers' own spelling.
    (r"^vision_model\.pre_(layrnorm|layernorm)\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
# torch stores the matrix of a Linear as (out, in), CLIP's own projections are (in, out).
_TRANSPOSED = ("visual.proj", "text_projection")


def is_openai(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors come from OpenAI's own archives, whose CLIPs all have QuickGELU."""
    return _OPENAI_SIZES[0] in state


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename CLIP's tensors to open_clip's names, as float32.

    Args:
        state: tensors in open_clip's, OpenAI's or transformers' (``CLIPModel``) layout.
    """
    state = {
        name: tensor.detach().float()
        for name, tensor in state.items()
        if name not in _OPENAI_SIZES and not name.endswith(_CONSTANTS)
    }
    if any(name.startswith("vision_model.") for name in state):
        return _from_transformers(state)
    return state


def _from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.T.contiguous() if name in _TRANSPOSED else tensor
    for name in [name for name in renamed if ".attn.q_proj." in name]:
        parts = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
        if all(part in renamed for part in parts):
            packed = name.replace(".q_proj.", ".in_proj_")
            renamed[packed] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def describe_misfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Return in words how two sets of tensors differ in names and shapes; "" if they do not."""
    wrong = [f"{n} is missing" for n in sorted(expected.keys() - found.keys())]
    wrong += [f"{n} is unknown" for n in sorted(found.keys() - expected.keys())]
    wrong += [
        f"{n} is {tuple(found[n].shape)} instead of {tuple(expected[n].shape)}"
        for n in sorted(expected.keys() & found.keys())
        if expected[n].shape != found[n].shape
    ]
    return listed(wrong, 5, "; ")
