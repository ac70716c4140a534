"""The names under which CLIP's tensors are stored: open_clip's, OpenAI's and transformers'."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tagclip.utils.text import listed

__all__ = ["describe_misfit", "foreign_layout", "is_constant", "is_openai", "to_open_clip"]

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
# transformers' SigLIP, whose image tower open_clip has from timm.
_SIGLIP = (
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.trunk.patch_embed.proj."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.trunk.pos_embed"),
    (r"^vision_model\.post_layernorm\.", "visual.trunk.norm."),
    (r"^vision_model\.head\.probe$", "visual.trunk.attn_pool.latent"),
    (r"^vision_model\.head\.attention\.out_proj\.", "visual.trunk.attn_pool.proj."),
    (r"^vision_model\.head\.layernorm\.", "visual.trunk.attn_pool.norm."),
    (r"^vision_model\.head\.(mlp|attention)\.", r"visual.trunk.attn_pool.\1."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.",
     r"visual.trunk.blocks.\1.attn.proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm", r"visual.trunk.blocks.\1.norm"),
    (r"^vision_model\.encoder\.layers\.", "visual.trunk.blocks."),
    (r"^(visual\..*)\.self_attn\.", r"\1.attn."),
    (r"^text_model\.head\.", "text.text_projection."),
    (r"^text_model\.embeddings\.token_embedding\.", "text.token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "text.positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "text.ln_final."),
    (r"^text_model\.encoder\.layers\.", "text.transformer.resblocks."),
    (r"^(text\..*)\.layer_norm([12])\.", r"\1.ln_\2."),
    (r"^(text\..*)\.self_attn\.", r"\1.attn."),
    (r"^(text\..*)\.mlp\.fc1\.", r"\1.mlp.c_fc."),
    (r"^(text\..*)\.mlp\.fc2\.", r"\1.mlp.c_proj."),
)  # fmt: skip
_PROBE = "vision_model.head.probe"
# Layouts that are not read: a tensor of theirs, whose it is, and where the same weights are to be
# had as open_clip names them.
_FOREIGN = (
    ("image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight", "Apple's MobileCLIP",
     "MODEL.CLIP.NAME MobileCLIP-S1 or MobileCLIP-S2 with MODEL.CLIP.PRETRAINED datacompdr"),
    ("image_encoder.model.patch_emb.0.block.conv.weight", "Apple's MobileCLIP-B",
     "MODEL.CLIP.NAME MobileCLIP-B with MODEL.CLIP.PRETRAINED datacompdr or datacompdr_lt"),
    ("visual.attn_pool.probe", "Meta's Perception Encoder",
     "MODEL.CLIP.NAME PE-Core-B-16 (L-14-336, ...) with MODEL.CLIP.PRETRAINED meta"),
    ("visual.cls_token", "EVA-CLIP",
     "MODEL.CLIP.NAME EVA02-B-16 (L-14, ...) with the tag of the same name"),
)  # fmt: skip
# torch stores the matrix of a Linear as (out, in), CLIP's own projections are (in, out).
_TRANSPOSED = ("visual.proj", "text_projection")


def is_openai(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors come from OpenAI's own archives, whose CLIPs all have QuickGELU."""
    return _OPENAI_SIZES[0] in state


def is_constant(name: str) -> bool:
    """Whether a tensor is none of the weights: a size, a mask or positions, which are dropped."""
    return name in _OPENAI_SIZES or name.endswith(_CONSTANTS)


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename CLIP's tensors to open_clip's names, as float32.

    Args:
        state: tensors in open_clip's, OpenAI's or transformers' layout (``CLIPModel``,
            ``SiglipModel``).
    """
    state = {
        name: tensor.detach().float() for name, tensor in state.items() if not is_constant(name)
    }
    if _PROBE in state:
        return _from_siglip(_renamed(state, _SIGLIP))
    if any(name.startswith("vision_model.") for name in state):
        return _renamed(state, _TRANSFORMERS)
    return state


def foreign_layout(state: Mapping[str, Tensor]) -> str:
    """Say whose layout is not read, and where the same weights are to be had; "" for others."""
    for name, whose, place in _FOREIGN:
        if name in state:
            return f"found the layout of {whose} ({name}), expected open_clip's; take {place}"
    patches = state.get("vision_model.embeddings.patch_embedding.weight")
    if _PROBE in state and patches is not None and patches.ndim == 2:
        return (
            "found SigLIP 2 for images of any shape (NaFlex), expected one for a fixed size; take "
            "MODEL.CLIP.NAME ViT-B-16-SigLIP2 with MODEL.CLIP.PRETRAINED webli"
        )
    return ""


def _renamed(state: Mapping[str, Tensor], table: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Rename tensors of transformers, and pack the matrices of queries, keys and values."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in table:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.T.contiguous() if name in _TRANSPOSED else tensor
    for name in [name for name in renamed if ".attn.q_proj." in name]:
        parts = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
        if all(part in renamed for part in parts):
            packed = name.replace(".q_proj.", ".in_proj_")
            renamed[packed] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def _from_siglip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give timm's towers their names and shapes: query apart from keys and values in the pool."""
    trunk = "visual.trunk."
    named = {
        name.replace(".attn.in_proj_", ".attn.qkv.") if name.startswith(trunk) else name: tensor
        for name, tensor in state.items()
    }
    table = f"{trunk}pos_embed"
    if table in named:
        named[table] = named[table][None]
    for kind in ("weight", "bias"):
        packed = named.pop(f"{trunk}attn_pool.attention.in_proj_{kind}", None)
        if packed is not None:
            width = len(packed) // 3
            named[f"{trunk}attn_pool.q.{kind}"] = packed[:width]
            named[f"{trunk}attn_pool.kv.{kind}"] = packed[width:]
    return named


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
