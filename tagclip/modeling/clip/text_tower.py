"""open_clip's text towers: which can be used, and how prompts go through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tagclip.errors import ConfigError
from tagclip.modeling.clip.tokenizer import check_no_code

__all__ = ["TextTower", "check_transformer", "context_length", "text_problems"]

_READOUTS = ("argmax", "eos", "first", "last")
# max_pooler of open_clip 3.3 takes a mask of integers, which torch refuses.
_POOLERS = ("mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler")
# Beyond the sizes of all models.
_LARGEST = 1 << 20


def context_length(text: Mapping[str, Any]) -> int:
    """Return the most tokens of a text, start and end included, of a ``text_cfg``."""
    return text.get("context_length", 77)


def text_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Say what of a model's text tower gives no vector of a text.

    Args:
        config: as `read_clip_config` returns it.
    """
    text = config["text_cfg"]
    if text.get("hf_model_name"):
        if text.get("hf_pooler_type", "mean_pooler") not in _POOLERS:
            yield f"text hf_pooler_type {text['hf_pooler_type']}"
        if text.get("hf_proj_type", "mlp") not in ("linear", "mlp"):
            yield f"text hf_proj_type {text['hf_proj_type']}"
        return
    if text.get("pool_type", "argmax") not in _READOUTS:
        yield f"text pool_type {text['pool_type']}"
    projection = text.get("proj_type", "linear")
    if projection not in ("linear", "none"):
        yield f"text proj_type {projection}"
    if projection == "none" and text.get("width", 512) != config["embed_dim"]:
        yield f"text proj_type none with width {text.get('width', 512)}"
    # open_clip's class without custom_text forgets it.
    is_custom = config.get("custom_text") or "multimodal_cfg" in config
    if text.get("embed_cls") and not is_custom:
        yield "text embed_cls without custom_text"


def check_transformer(file: Path) -> dict[str, Any]:
    """Check the ``config.json`` of a text tower of transformers.

    Returns:
        Its content.

    Raises:
        ConfigError: it is damaged, asks for code, or is of a kind that open_clip does not know.
    """
    from open_clip.hf_configs import arch_dict

    content = check_no_code(file)
    kind = content.get("model_type")
    if kind not in arch_dict:
        raise ConfigError(
            f"{file}: found model_type {kind!r:.40}, expected {', '.join(arch_dict)}; name the "
            "folder of the text tower as MODEL.CLIP.TOKENIZER"
        )
    wrong = [k for k, v in content.items() if isinstance(v, int) and not -_LARGEST < v < _LARGEST]
    if wrong or not isinstance(content.get("vocab_size"), int):
        key = wrong[0] if wrong else "vocab_size"
        raise ConfigError(
            f"{file}: found {key} {content.get(key)!r:.40}, expected a size up to {_LARGEST}; "
            "fetch it again, or name another folder as MODEL.CLIP.TOKENIZER"
        )
    return content


class TextTower(nn.Module):
    """Token ids -> text vectors, as ``encode_text`` of open_clip.

    Attributes:
        truncates_exactly: whether padding changes nothing, so that texts need no more of it than
            the longest one: CLIP's tokens look only at those before them, and transformers' masks
            padding out. Elsewhere (SigLIP, CLIPA, CoCa, most of MobileCLIP) padding is read.
    """

    def __init__(self, tower: nn.Module, *, context_length: int, pad_id: int) -> None:
        """Wrap a tower.

        Args:
            tower: open_clip's ``TextTransformer`` or ``HFTextEncoder``.
            context_length: ids of a text with its padding.
            pad_id: of the tokenizer.
        """
        super().__init__()
        self.tower = tower
        self.context_length, self._pad_id = context_length, pad_id
        readout = getattr(tower, "pool_type", None)
        is_causal = getattr(tower, "attn_mask", None) is not None and tower.cls_emb is None
        self._is_causal = is_causal and readout != "last"
        if readout is None:
            self.truncates_exactly = tower.config.pad_token_id == pad_id
        else:
            self.truncates_exactly = self._is_causal
        # Where padding may be what is read, one of it has to be there.
        self._padding = int(readout in ("argmax", "eos") and pad_id != 0)
        if self._is_causal:
            # Not used: a mask is made for each length.
            tower.attn_mask = None

    def length(self, rows: Sequence[Sequence[int]]) -> int:
        """Return the number of ids that the tower has to read of each row, padding included."""
        if not self.truncates_exactly:
            return self.context_length
        return min(self.context_length, max(map(len, rows)) + self._padding)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode texts.

        Args:
            ids: (T, L) int64, filled up with the tokenizer's padding to `length`.

        Returns:
            (T, D), of any length each.
        """
        if not self._is_causal:
            output = self.tower(ids)
            return output[0] if isinstance(output, tuple) else output
        tower, length = self.tower, ids.shape[1]
        mask = torch.full((length, length), -torch.inf, device=ids.device).triu_(1)
        x = tower.token_embedding(ids) + tower.positional_embedding[:length]
        x = tower.transformer(x, attn_mask=mask)
        x = tower.ln_final(x[torch.arange(x.shape[0], device=x.device), self._read_at(ids)])
        projection = tower.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Module) else x @ projection

    def _read_at(self, ids: Tensor) -> Tensor:
        """(T,) index of the token that stands for each text."""
        if self.tower.pool_type == "eos":
            return (ids == self.tower.eos_id).int().argmax(dim=1)
        if self.tower.pool_type == "first":
            return torch.zeros_like(ids[:, 0])
        # CLIP's end token has the largest id.
        return ids.argmax(dim=1)
