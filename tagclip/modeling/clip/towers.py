"""What the models of the installed open_clip are, and which of them have towers here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tagclip.errors import ConfigError
from tagclip.modeling.clip.config import check_supported, open_clip_spelling

__all__ = ["Tower", "list_towers"]


@dataclass(frozen=True)
class Tower:
    """One model of open_clip.

    Attributes:
        name: for ``MODEL.CLIP.NAME``.
        image: its image tower in words.
        size: (height, width) in pixels that it was trained on.
        dim: channels of its vectors.
        text: its text tower in words.
        tokenizer: repository of a Hugging Face tokenizer; "" is CLIP's own.
        tags: open_clip's names of its weights, for ``MODEL.CLIP.PRETRAINED``.
        refused: why there are no towers here for it; "" if there are.
    """

    name: str
    image: str
    size: tuple[int, int]
    dim: int
    text: str
    tokenizer: str
    tags: tuple[str, ...]
    refused: str


def list_towers(words: Sequence[str] = ()) -> Iterator[Tower]:
    """Yield the models of the installed open_clip whose names hold all words, upper case or lower.

    Args:
        words: parts of names, also in OpenAI's spelling, of tags or of the networks of timm.
    """
    from tagclip.modeling.clip.library import open_clip

    for name in open_clip.list_models():
        tower = _describe(name, open_clip.get_model_config(name))
        text = " ".join((name, tower.image, *tower.tags)).lower()
        if all(open_clip_spelling(word).lower() in text for word in words):
            yield tower


def _describe(name: str, config: dict[str, Any]) -> Tower:
    from tagclip.modeling.clip.library import open_clip

    vision, text = config["vision_cfg"], config["text_cfg"]
    size = vision.get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    try:
        check_supported(name, config)
        refused = ""
    except ConfigError as error:
        found = str(error).removeprefix(f"MODEL.CLIP.NAME {name}: found ")
        refused = found.partition(", expected ")[0]
    return Tower(
        name=name,
        image=_image(vision),
        size=(height, width),
        dim=config["embed_dim"],
        text=_text(text),
        tokenizer=text.get("hf_tokenizer_name") or "",
        tags=tuple(open_clip.list_pretrained_tags_by_model(name)),
        refused=refused,
    )


def _image(vision: dict[str, Any]) -> str:
    if vision.get("timm_model_name"):
        return f"timm {vision['timm_model_name']}"
    layers = vision.get("layers", 12)
    if not isinstance(layers, int):
        return f"ResNet {'-'.join(map(str, layers))}"
    patch = vision.get("patch_size", 16)
    pool = "attention" if vision.get("attentional_pool") else vision.get("pool_type", "tok")
    pool = {"tok": "", "avg": ", mean", "attention": ", attention pool"}.get(pool, f", {pool}")
    return f"ViT {layers}x{vision.get('width', 768)}, patch {patch}{pool}"


def _text(text: dict[str, Any]) -> str:
    if text.get("hf_model_name"):
        return f"transformers {text['hf_model_name']}"
    is_causal = "" if text.get("no_causal_mask") else ", causal"
    return f"{text.get('context_length', 77)} tokens{is_causal}"
