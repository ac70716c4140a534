"""open_clip's model configs: where they are read and which of them are supported."""

from __future__ import annotations

import os
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from tagclip.config.loading import advice_if_relative
from tagclip.errors import ConfigError
from tagclip.modeling.clip.download import fetch_config
from tagclip.modeling.clip.text_tower import text_problems
from tagclip.modeling.clip.tokenizer import tokenizer_problems
from tagclip.utils.text import did_you_mean
from tagclip.utils.untrusted import load_json

__all__ = ["CONFIG_FILE", "HUB", "LOCAL", "canonical_name", "check_supported", "is_weight_path",
           "merges_file", "read_clip_config", "vision_sizes"]  # fmt: skip

# open_clip's prefixes of names, of a folder and of a repository.
LOCAL, HUB = "local-dir:", "hf-hub:"
CONFIG_FILE = "open_clip_config.json"
# Vision options of open_clip whose towers are built differently from CLIPViT.
_UNSUPPORTED_VISION = (
    "timm_model_name",
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
# What open_clip takes if a model json does not say it.
_VISION = {"width": 768, "layers": 12, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16,
           "image_size": 224}  # fmt: skip
_TEXT = {"width": 512, "heads": 8}
# Far beyond the sizes of all models.
_LARGEST = 1 << 20


def canonical_name(name: str) -> str:
    """Return open_clip's spelling of a model name: OpenAI writes ViT-L/14@336px."""
    if name.endswith(".json") or name.startswith((LOCAL, HUB)):
        return name
    return name.replace("/", "-").replace("@336px", "-336")


def is_weight_path(pretrained: str) -> bool:
    """Whether MODEL.CLIP.PRETRAINED is a path by its looks; a tag has no suffix and no folder."""
    looks_so = bool(os.path.splitext(pretrained)[1] or os.path.dirname(pretrained))
    return looks_so and not pretrained.startswith(HUB)


def read_clip_config(name: str, cache_dir: str = "", text: str = "") -> dict[str, Any]:
    """Return the config of a model, every value of a type and size that open_clip takes.

    Args:
        name: an open_clip model name, the path of a model json, ``local-dir:FOLDER`` or
            ``hf-hub:ORGANISATION/REPOSITORY``.
        cache_dir: see `fetch_config`.
        text: content of the model json; "" reads the file.

    Raises:
        ConfigError: open_clip does not know the name, or the json is missing or makes no sense.
        CheckpointError: the config is on the hub, neither cached nor within reach.
    """
    if name.startswith(LOCAL):
        return _read_json(Path(name.removeprefix(LOCAL)) / CONFIG_FILE)
    if name.startswith(HUB):
        return _read_json(fetch_config(name, name.removeprefix(HUB), CONFIG_FILE, cache_dir))
    if name.endswith(".json"):
        return _read_json(Path(name), text)
    from tagclip.modeling.clip.library import open_clip

    # Its answer to other names may be a download.
    if name not in open_clip.list_models():
        raise ConfigError(
            f"MODEL.CLIP.NAME: open_clip has no model {name!r}; expected a name that "
            "open_clip.list_models() gives, or the path of a model json"
            f"{did_you_mean(name, open_clip.list_models())}"
        )
    return open_clip.get_model_config(name)


def _read_json(path: Path, text: str = "") -> dict[str, Any]:
    try:
        config = load_json(text or path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"MODEL.CLIP.NAME: cannot read the model json {path} ({error}); check the path"
            f"{advice_if_relative(str(path))}"
        ) from error
    if isinstance(config, dict):
        # Beside weights it stands in a larger json.
        config = config.get("model_cfg", config)
    wrong = next(_wrong_values(config), "")
    if wrong:
        raise ConfigError(
            f"{path}: found {wrong}, as open_clip model jsons hold; compare with "
            "open_clip/model_configs"
        )
    return config


def _wrong_values(config: Any) -> Iterator[str]:
    """What is wrong with the values of a model json, and what was expected."""
    from tagclip.modeling.clip.library import open_clip

    required = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    found = config if isinstance(config, dict) else {}
    wrong = [key for key, kind in required.items() if not _fits(found.get(key), kind)]
    if wrong:
        yield f"no valid {', '.join(wrong)}, expected these"
        return
    yield from _wrong_sizes("", found, ("embed_dim",))
    for key in ("quick_gelu", "custom_text"):
        if not isinstance(found.get(key, False), bool):
            yield f"{key} {found[key]!r:.40}, expected true or false"
    for part, kind in (
        ("vision_cfg", open_clip.CLIPVisionCfg),
        ("text_cfg", open_clip.CLIPTextCfg),
    ):
        yield from _wrong_options(part, found[part], kind)
    vision, text = _VISION | found["vision_cfg"], _TEXT | found["text_cfg"]
    sizes = ("width", "head_width", "mlp_ratio", "patch_size", "image_size", "layers")
    yield from _wrong_sizes("vision_cfg.", vision, sizes)
    sizes = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
    yield from _wrong_sizes("text_cfg.", text, sizes)
    if not 0 <= vision.get("patch_dropout", 0) < 1:
        yield f"vision_cfg.patch_dropout {vision['patch_dropout']}, expected a share below 1"
    if vision["width"] % vision["head_width"]:
        yield (f"vision_cfg.width {vision['width']}, expected a multiple of head_width, "
               f"{vision['head_width']}")  # fmt: skip
    if text["width"] % text["heads"]:
        yield f"text_cfg.width {text['width']}, expected a multiple of heads, {text['heads']}"
    if min(_pair(vision["image_size"])) < vision["patch_size"]:
        yield (f"vision_cfg.image_size {vision['image_size']}, expected at least patch_size, "
               f"{vision['patch_size']}")  # fmt: skip


def _wrong_options(part: str, options: Mapping[str, Any], kind: type) -> Iterator[str]:
    """Compare options with the dataclass that open_clip makes of them."""
    hints, defaults = get_type_hints(kind), {field.name: field.default for field in fields(kind)}
    for key, value in options.items():
        if key not in hints:
            yield f"{part}.{key}, expected other keys{did_you_mean(key, hints)}"
        # The default of some does not have their type.
        elif value != defaults[key] and not _fits(value, hints[key]):
            hint = hints[key]
            expected = hint.__name__ if isinstance(hint, type) else str(hint)
            yield f"{part}.{key} {value!r:.40}, expected {expected.replace('typing.', '')}"


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a json is what a dataclass wants."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        pairs = zip(value, kinds, strict=False) if isinstance(value, (list, tuple)) else ()
        return bool(pairs) and len(value) == len(kinds) and all(_fits(*pair) for pair in pairs)
    if hint is float:
        hint = (int, float)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _wrong_sizes(prefix: str, found: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[str]:
    for key in keys:
        values = found.get(key, 1)
        for value in values if isinstance(values, (list, tuple)) else (values,):
            if not 0 < value <= _LARGEST:
                yield f"{prefix}{key} {value}, expected a size from 1 to {_LARGEST}"


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def check_supported(name: str, config: Mapping[str, Any]) -> None:
    """Check that both towers can be used: a ViT with a class token, a vector of each text.

    Args:
        name: the model, for the message.
        config: as `read_clip_config` returns it.

    Raises:
        ConfigError: they are not.
    """
    vision = config["vision_cfg"]
    wrong = [f"vision {key}" for key in _UNSUPPORTED_VISION if vision.get(key)]
    # Layers that scale by 0 are layers, too.
    if vision.get("ls_init_value") is not None:
        wrong.append("vision ls_init_value")
    if vision.get("pool_type", "tok") != "tok":
        wrong.append(f"vision pool_type {vision['pool_type']}")
    if vision.get("pos_embed_type", "learnable") != "learnable":
        wrong.append(f"vision pos_embed_type {vision['pos_embed_type']}")
    if not isinstance(vision.get("layers", 12), int):
        wrong.append("a ResNet")
    wrong += [*text_problems(config), *tokenizer_problems(name, config["text_cfg"])]
    if wrong:
        raise ConfigError(
            f"MODEL.CLIP.NAME {name}: found {', '.join(wrong)}, expected a plain ViT with a class "
            "token and a text tower that gives one vector of each text; choose another CLIP, such "
            "as ViT-B-16-quickgelu"
        )


def vision_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of a supported vision tower as keyword arguments of `CLIPViT`."""
    vision = _VISION | config["vision_cfg"]
    width, patch = vision["width"], vision["patch_size"]
    height, image_width = _pair(vision["image_size"])
    return {
        "width": width,
        "layers": vision["layers"],
        "heads": width // vision["head_width"],
        "hidden": int(width * vision["mlp_ratio"]),
        "patch_size": patch,
        "grid_size": (height // patch, image_width // patch),
        "embed_dim": config["embed_dim"],
        "quick_gelu": bool(config.get("quick_gelu", False)),
        "ln_pre": not vision.get("no_ln_pre", False),
    }


def merges_file(name: str, config: Mapping[str, Any]) -> Path | None:
    """Path of the merges that a model json names for CLIP's tokenizer; None means CLIP's own.

    It lies beside the json, wherever the command is run.

    Raises:
        ConfigError: the json names a file elsewhere.
    """
    options = config["text_cfg"].get("tokenizer_kwargs") or {}
    if not name.endswith(".json") or "bpe_path" not in options:
        return None
    file = options["bpe_path"]
    if not isinstance(file, str) or file in ("", "..") or Path(file).name != file:
        raise ConfigError(
            f"{name}: found bpe_path {file!r}, expected the name of a file beside this json; move "
            "the merges there"
        )
    return Path(name).parent / file
