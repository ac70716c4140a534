"""open_clip's model configs: where they are read and which of them are supported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tagclip.config.loading import advice_if_relative
from tagclip.errors import ConfigError
from tagclip.utils.untrusted import load_json

__all__ = ["check_text_config", "merges_file", "read_clip_config", "vision_sizes"]

# Vision options of open_clip whose towers are built differently from CLIPViT.
_UNSUPPORTED_VISION = (
    "timm_model_name",
    "ls_init_value",
    "attentional_pool",
    "final_ln_after_pool",
    "block_type",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
    "act_kwargs",
    "norm_kwargs",
)
# Text options under which a prompt cannot be cut after its end token, or is no CLIP prompt.
_UNSUPPORTED_TEXT = (
    "hf_model_name",
    "hf_tokenizer_name",
    "embed_cls",
    "no_causal_mask",
)


def read_clip_config(name: str, text: str = "") -> dict[str, Any]:
    """Return the config of an open_clip model name or of a model json.

    Args:
        name: the model's name, or path of the json.
        text: content of the json; "" reads the file.

    Raises:
        ConfigError: open_clip does not know the name, or the json is missing or incomplete.
    """
    if not name.endswith(".json"):
        import open_clip

        config = open_clip.get_model_config(name)
        if config is None:
            raise ConfigError(
                f"MODEL.CLIP.NAME: open_clip has no model {name!r}; expected a name that "
                "open_clip.list_models() gives, or the path of a model json"
            )
        return config
    path = Path(name)
    try:
        config = load_json(text or path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"MODEL.CLIP.NAME: cannot read the model json {name} ({error}); check the path"
            f"{advice_if_relative(name)}"
        ) from error
    kinds = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    found = config if isinstance(config, dict) else {}
    wrong = [key for key, kind in kinds.items() if not isinstance(found.get(key), kind)]
    if wrong:
        raise ConfigError(
            f"{path}: found no valid {', '.join(wrong)}, which an open_clip model json holds; "
            "compare with open_clip/model_configs"
        )
    return config


def vision_sizes(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes of the vision tower as keyword arguments of `CLIPViT`.

    Raises:
        ConfigError: it is not a ViT with a class token.
    """
    vision = config["vision_cfg"]
    unsupported = [key for key in _UNSUPPORTED_VISION if vision.get(key)]
    if vision.get("pool_type", "tok") != "tok":
        unsupported.append(f"pool_type {vision['pool_type']}")
    if vision.get("pos_embed_type", "learnable") != "learnable":
        unsupported.append(f"pos_embed_type {vision['pos_embed_type']}")
    if not isinstance(vision.get("layers", 12), int):
        unsupported.append("a ResNet")
    if unsupported:
        raise ConfigError(
            f"MODEL.CLIP.NAME {name}: found {', '.join(unsupported)}, expected a plain ViT with a "
            "class token such as ViT-B-16-quickgelu"
        )
    width, patch = vision.get("width", 768), vision.get("patch_size", 16)
    size = vision.get("image_size", 224)
    height, image_width = (size, size) if isinstance(size, int) else size
    return {
        "width": width,
        "layers": vision.get("layers", 12),
        "heads": width // vision.get("head_width", 64),
        "hidden": int(width * vision.get("mlp_ratio", 4.0)),
        "patch_size": patch,
        "grid_size": (height // patch, image_width // patch),
        "embed_dim": config["embed_dim"],
        "quick_gelu": bool(config.get("quick_gelu", False)),
        "ln_pre": not vision.get("no_ln_pre", False),
    }


def check_text_config(name: str, config: dict[str, Any]) -> None:
    """Check that the text tower is CLIP's: causal, read at the end token, with CLIP's tokenizer.

    Raises:
        ConfigError: it is not.
    """
    text = config["text_cfg"]
    unsupported = [f"{key} {text[key]}" for key in _UNSUPPORTED_TEXT if text.get(key)]
    tokenizer = text.get("tokenizer_kwargs") or {}
    if tokenizer and merges_file(name, config) is None:
        unsupported.append(f"tokenizer_kwargs {tokenizer}")
    for key, expected in (("pool_type", "argmax"), ("proj_type", "linear")):
        if text.get(key, expected) != expected:
            unsupported.append(f"{key} {text[key]}")
    if unsupported:
        raise ConfigError(
            f"MODEL.CLIP.NAME {name}: found the text options {', '.join(unsupported)}, expected "
            "CLIP's own causal text transformer; choose another CLIP"
        )


def merges_file(name: str, config: dict[str, Any]) -> Path | None:
    """Path of the merges that a model json names for CLIP's tokenizer; None means CLIP's own.

    It lies beside the json, wherever the command is run.

    Raises:
        ConfigError: the json names a file elsewhere.
    """
    options = config["text_cfg"].get("tokenizer_kwargs") or {}
    if not name.endswith(".json") or list(options) != ["bpe_path"]:
        return None
    file = options["bpe_path"]
    if not isinstance(file, str) or file in ("", "..") or Path(file).name != file:
        raise ConfigError(
            f"{name}: found bpe_path {file!r}, expected the name of a file beside this json; move "
            "the merges there"
        )
    return Path(name).parent / file
