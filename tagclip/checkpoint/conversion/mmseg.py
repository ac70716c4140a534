"""Checkpoints of the released TagCLIP and of ZegCLIP (mmseg), under this library's names.

Names and dead parameters: docs/method.md, sections 3 to 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tagclip.errors import CheckpointError
from tagclip.modeling.backbone.prompts import DeepPrompts
from tagclip.modeling.clip.layouts import describe_misfit
from tagclip.modeling.heads import TagCLIPHead
from tagclip.modeling.heads.mask_decoder import MaskDecoder
from tagclip.modeling.heads.tagclip_head import RelationDescriptor
from tagclip.modeling.losses.seg_loss import SegLoss
from tagclip.utils.text import listed

__all__ = ["Conversion", "convert_official", "decoder_letters", "is_official", "trained_tensors"]

_TOKEN = "decode_head.disc_token"
# ZegCLIP's names of the decoder and of the relation descriptor; it has no trusty token.
_ZEGCLIP = ("decode_head.decoder_1.", "decode_head.q_proj.")
_LAYER = re.compile(r"decode_head\.decoder(?:_1)?\.layers\.(\d+)\.(.+)")
_RENAMED = (
    ("backbone.prompt_proj.", "backbone.prompts.proj."),
    ("backbone.prompt_norm.", "backbone.prompts.norm."),
    ("decode_head.relationship_discriptor.q_proj.", "sem_seg_head.relation.proj."),
    ("decode_head.q_proj.", "sem_seg_head.relation.proj."),
)
# Inside a decoder layer. The last layer has only the parts that its logits need.
_SELF_ATTENTION = (
    ("self_attn.in_proj_", "self_attention.qkv."),
    ("self_attn.out_proj.", "self_attention.proj."),
    ("norm1.", "self_attention.norm."),
)
_MATCHING = (("multihead_attn.q.", "query."), ("multihead_attn.k.", "key."))
_INNER = (
    ("multihead_attn.v.", "value."),
    ("multihead_attn.proj.", "proj."),
    ("norm2.", "norm."),
    ("linear1.", "ffn.0."),
    ("linear2.", "ffn.3."),
    ("norm3.", "ffn_norm."),
)
_DEAD = "no forward pass reads it"


@dataclass(frozen=True)
class Conversion:
    """An official checkpoint, taken apart.

    Attributes:
        kind: ``TagCLIP`` or ``ZegCLIP``.
        layers: value of ``MODEL.TAGCLIP.LAYERS``.
        trusty_target: ``novel``, what the released code trains the token on; None without one.
        trained: this library's name -> tensor, all trainable ones.
        sources: this library's name -> official names, in the order in which they are joined.
        clip: open_clip's name -> frozen CLIP weights of both towers.
        dropped: official name -> why.
    """

    kind: str
    layers: str
    trusty_target: str | None
    trained: dict[str, Tensor]
    sources: dict[str, list[str]]
    clip: dict[str, Tensor]
    dropped: dict[str, str]


def is_official(state: Mapping[str, object]) -> bool:
    """Whether the names are those of the released code or of ZegCLIP."""
    return any(name.startswith("decode_head.") for name in state)


def convert_official(state: Mapping[str, Tensor], where: str = "checkpoint") -> Conversion:
    """Sort the tensors of an official state dict into trained, frozen and unread ones.

    Args:
        state: ``state_dict`` of an mmseg checkpoint of TagCLIP or ZegCLIP, unwrapped.
        where: what error messages call it.

    Raises:
        CheckpointError: a name is unknown, a tensor is missing, or shapes do not fit together.
    """
    letters = decoder_letters(state)
    clip, dropped, rest = {}, {}, {}
    for name, tensor in state.items():
        if (clip_name := _clip_name(name)) is not None:
            clip[clip_name] = tensor
        elif name.endswith("loss_decode.criterion.empty_weight"):
            dropped[name] = "constant of the loss"
        else:
            rest[name] = tensor
    unknown = sorted(name for name in rest if not _is_known(name))
    if unknown:
        raise CheckpointError(
            f"{where}: found unknown tensors {listed(unknown, 5)}, expected those of "
            "TagCLIP (operator a_n_n) or ZegCLIP; other variants cannot be converted"
        )
    trained, sources = trained_tensors(rest, letters)
    used = {name for names in sources.values() for name in names}
    dropped |= {name: _DEAD for name in rest if name not in used}
    if misfit := _misfit(trained, letters):
        raise CheckpointError(
            f"{where}: incomplete or of another model: {misfit}; download it again"
        )
    zegclip = any(name.startswith(_ZEGCLIP) for name in state)
    target = "novel" if "sem_seg_head.trusty_token" in trained else None
    return Conversion(
        "ZegCLIP" if zegclip else "TagCLIP", letters, target, trained, sources, clip, dropped
    )


def decoder_letters(names: Iterable[str]) -> str:
    """Return ``MODEL.TAGCLIP.LAYERS`` of an official state dict: ``a`` or ``n`` per layer.

    TagCLIP stores self-attention only where it is used, ZegCLIP stores and never uses it.
    """
    names = list(names)
    zegclip = any(name.startswith(_ZEGCLIP) for name in names)
    parts = [match.groups() for match in map(_LAYER.fullmatch, names) if match]
    with_attention = {int(i) for i, part in parts if part.startswith("self_attn.")}
    count = max((int(i) for i, _ in parts), default=-1) + 1
    return "".join("a" if i in with_attention and not zegclip else "n" for i in range(count))


def trained_tensors(
    state: Mapping[str, Tensor], letters: str
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Rename what is trained and read; also for gradients, which have the same names.

    Args:
        state: official name -> tensor, any subset.
        letters: ``MODEL.TAGCLIP.LAYERS``, which decides what is read.

    Returns:
        This library's name -> tensor, and -> official names.
    """
    sources: dict[str, list[str]] = {}
    for name in state:
        own = _own_name(name, letters)
        if own is not None:
            sources.setdefault(own, []).append(name)
    tensors = {}
    for own, names in sources.items():
        # All layers' prompts are one tensor here, those of the first layer first.
        names.sort(key=lambda name: "deep_" in name)
        parts = [state[name] for name in names]
        tensors[own] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return tensors, sources


def _own_name(name: str, letters: str) -> str | None:
    """Return this library's name; None for what nothing reads and for what is not trained."""
    if name in ("backbone.prompt_embeddings", "backbone.deep_prompt_embeddings"):
        return "backbone.prompts.tokens"
    if name == _TOKEN:
        return "sem_seg_head.trusty_token"
    for old, new in _RENAMED:
        if name.startswith(old):
            return new + name.removeprefix(old)
    match = _LAYER.fullmatch(name)
    if match is None or int(match[1]) >= len(letters):
        return None
    index, part = int(match[1]), match[2]
    is_last = index == len(letters) - 1
    read = _MATCHING if is_last else _MATCHING + _INNER
    if letters[index] == "a":
        read += _SELF_ATTENTION
    for old, new in read:
        if part.startswith(old):
            layer = "logits" if is_last else f"layers.{index}"
            return f"sem_seg_head.decoder.{layer}.{new}{part.removeprefix(old)}"
    return None


def _is_known(name: str) -> bool:
    """Whether a tensor that is neither frozen nor constant is one of the two models'."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return _own_name(name, "") is not None
    return match[2].startswith(tuple(old for old, _ in _SELF_ATTENTION + _MATCHING + _INNER))


def _clip_name(name: str) -> str | None:
    if name.startswith("text_encoder."):
        return name.removeprefix("text_encoder.")
    if name.startswith("backbone.") and "prompt" not in name:
        return "visual." + name.removeprefix("backbone.")
    return None


def _misfit(trained: Mapping[str, Tensor], letters: str) -> str:
    """Compare names and shapes with modules of the sizes that the tensors themselves tell."""
    tokens = trained.get("backbone.prompts.tokens")
    relation = trained.get("sem_seg_head.relation.proj.weight")
    if tokens is None or relation is None or not letters:
        return "prompts, relation descriptor or decoder are missing"
    if tokens.ndim != 3 or relation.ndim != 2:
        return f"prompts are {tuple(tokens.shape)}, the relation is {tuple(relation.shape)}"
    dim = relation.shape[0]
    with torch.device("meta"):
        prompts = DeepPrompts(
            num_tokens=tokens.shape[1], width=tokens.shape[2], depth=len(tokens), patch_size=1
        )
        head = TagCLIPHead(
            relation=RelationDescriptor(dim=dim),
            decoder=MaskDecoder(dim=dim, num_heads=1, layers=letters),
            loss=SegLoss(),
            dim=dim,
            trusty_enabled="sem_seg_head.trusty_token" in trained,
        )
    parts = {"backbone.prompts.": prompts, "sem_seg_head.": head}
    expected = {
        prefix + name: parameter
        for prefix, module in parts.items()
        for name, parameter in module.named_parameters()
    }
    return describe_misfit(expected, trained)
