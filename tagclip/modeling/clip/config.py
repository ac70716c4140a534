"""open_clip's model configs: where they are read and which of them are supported."""

from __future__ import annotations

import os
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from tagclip.config.loading import advice_if_relative
from tagclip.errors import ConfigError
from tagclip.modeling.clip.download import fetch_config
from tagclip.modeling.clip.text_tower import text_problems
from tagclip.modeling.clip.tokenizer import tokenizer_problems
from tagclip.utils.text import did_you_mean
from tagclip.utils.untrusted import load_json

__all__ = ["CONFIG_FILE", "HUB", "LOCAL", "canonical_name", "check_supported",
           "is_weight_path", "merges_file", "model_options", "open_clip_spelling",
           "read_clip_config",
           "vision_sizes"]  # fmt: skip

# open_clip's prefixes of names, of a folder and of a repository.
LOCAL, HUB = "local-dir:", "hf-hub:"
# The json that it writes beside weights.
CONFIG_FILE = "open_clip_config.json"
# Options of open_clip's custom block; what its attention makes of a scaled cosine fails in torch.
_BLOCK_PARTS = ("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
_SCALED_COSINE = "scaled_cosine_attn"
# Keyword arguments of GELU and LayerNorm, and their kinds.
_KWARGS = {
    "act_kwargs": {"approximate": str},
    "norm_kwargs": {"eps": float, "elementwise_affine": bool, "bias": bool},
}
# Values beside those of its type that an option may have: open_clip's own jsons have it.
_NOTHING = {"timm_proj": (None,)}
# What open_clip takes if a model json does not say it.
_VISION = {"width": 768, "layers": 12, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16,
           "image_size": 224, "attn_pooler_heads": 8, "attn_pooler_queries": 256}  # fmt: skip
_TEXT = {"width": 512, "heads": 8}
# Options that name files, whose contents have checksums of their own.
_FILES = ("hf_tokenizer_name", "hf_model_name")
# Modules of timm whose networks take images of any size.
_TIMM = (
    "convnext", "eva", "fastvit", "vision_transformer", "vision_transformer_hybrid", "vitamin",
)  # fmt: skip
# Others of open_clip's models.
_ONE_SIZE = ("swin_transformer", "vision_transformer_relpos")
# Far beyond the sizes of all models.
_LARGEST = 1 << 20


def open_clip_spelling(name: str) -> str:
    """Return open_clip's spelling of a model; OpenAI writes ViT-L/14@336px."""
    return name.replace("/", "-").replace("@336px", "-336")


def canonical_name(name: str) -> str:
    """Return the one spelling of a model: open_clip's name, the path of a json or ``hf-hub:...``.

    A folder is that of the json which open_clip puts beside weights.
    """
    if name.startswith(LOCAL):
        place = name.removeprefix(LOCAL)
        return place if place.endswith(".json") else os.path.join(place, CONFIG_FILE)
    if name.endswith(".json") or name.startswith(HUB):
        return name
    known = open_clip_spelling(name)
    file = os.path.join(name, CONFIG_FILE)
    if name.startswith(("/", "./", "../", "~", "$")):
        return file
    return file if os.path.isfile(file) and not _is_known(known) else known


def _is_known(name: str) -> bool:
    from tagclip.modeling.clip.library import open_clip

    return name in open_clip.list_models()


def is_weight_path(pretrained: str) -> bool:
    """Whether MODEL.CLIP.PRETRAINED is a path by its looks; a tag has no suffix and no folder."""
    looks_so = bool(os.path.splitext(pretrained)[1] or os.path.dirname(pretrained))
    return looks_so and not pretrained.startswith(HUB)


def read_clip_config(name: str, cache_dir: str = "", text: str = "") -> dict[str, Any]:
    """Return the config of a model, every value of a type and size that open_clip takes.

    Args:
        name: an open_clip model name, the path of a model json or
            ``hf-hub:ORGANISATION/REPOSITORY``, see `canonical_name`.
        cache_dir: see `fetch_config`.
        text: content of the model json; "" reads the file.

    Raises:
        ConfigError: open_clip does not know the name, or the json is missing or makes no sense.
        CheckpointError: the config is on the hub, neither cached nor within reach.
    """
    if name.startswith(HUB):
        return _read_json(fetch_config(name, name.removeprefix(HUB), CONFIG_FILE, cache_dir))
    if name.endswith(".json"):
        return _read_json(Path(name), text)
    from tagclip.modeling.clip.library import open_clip

    # Its answer to other names may be a download.
    if not _is_known(name):
        raise ConfigError(
            f"MODEL.CLIP.NAME: open_clip has no model {name!r}; expected a name that "
            "open_clip.list_models() gives, the path of a model json or of a folder with an "
            f"{CONFIG_FILE}, or hf-hub:ORGANISATION/REPOSITORY"
            f"{did_you_mean(name, open_clip.list_models())}"
        )
    return open_clip.get_model_config(name)


def _read_json(path: Path, text: str = "") -> dict[str, Any]:
    try:
        config = load_json(text or path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if text:
            raise ConfigError(
                f"MODEL.CLIP.JSON: found {text!r:.60}, no json ({error}), expected the content of "
                'an open_clip model json, or "" to read that of MODEL.CLIP.NAME'
            ) from error
        raise ConfigError(
            f"MODEL.CLIP.NAME: cannot read the model json {path} ({error}); check the path"
            f"{advice_if_relative(str(path))}"
        ) from error
    config = _plain(config)
    wrong = next(_wrong_values(config), "")
    if wrong:
        raise ConfigError(
            f"{'MODEL.CLIP.JSON' if text else path}: found {wrong}, as open_clip model jsons hold; "
            "compare with open_clip/model_configs"
        )
    return config


def _plain(config: Any) -> Any:
    """Take a config out of the json that stands beside weights; a square patch is one number."""
    if isinstance(config, dict):
        config = config.get("model_cfg", config)
    vision = config.get("vision_cfg") if isinstance(config, dict) else None
    patch = vision.get("patch_size") if isinstance(vision, dict) else None
    if isinstance(patch, list) and len(patch) == 2 and patch[0] == patch[1]:
        config["vision_cfg"] = vision | {"patch_size": patch[0]}
    return config


def model_options(text: str) -> dict[str, Any]:
    """Return what a model's vectors depend on beside weights, tokenizer and its files.

    Args:
        text: content of a model json that `read_clip_config` takes.

    Returns:
        Dotted option -> value, open_clip's own where the json says nothing.
    """
    from tagclip.modeling.clip.library import open_clip

    config = _plain(load_json(text))
    found = {key: config.get(key) for key in ("embed_dim", "quick_gelu")}
    for part, kind in (
        ("vision_cfg", open_clip.CLIPVisionCfg),
        ("text_cfg", open_clip.CLIPTextCfg),
    ):
        options = {field.name: field.default for field in fields(kind)} | config[part]
        found |= {f"{part}.{key}": value for key, value in options.items() if key not in _FILES}
    tokenizer = dict(config["text_cfg"].get("tokenizer_kwargs") or {})
    tokenizer.pop("bpe_path", None)
    return found | {"text_cfg.tokenizer_kwargs": tokenizer}


def _wrong_values(config: Any) -> Iterator[str]:
    """What is wrong with the values of a model json, and what was expected."""
    from tagclip.modeling.clip.library import open_clip

    required = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    found = config if isinstance(config, dict) else {}
    wrong = [key for key, kind in required.items() if not _fits(found.get(key), kind)]
    if wrong:
        yield f"no valid {', '.join(wrong)}, expected these"
        return
    known = {*signature(open_clip.CLIP).parameters, "custom_text", "multimodal_cfg"}
    for key in found.keys() - known:
        yield f"{key}, expected other keys{did_you_mean(key, known)}"
    yield from _wrong_sizes("", found, ("embed_dim",))
    for key in ("quick_gelu", "custom_text"):
        if not isinstance(found.get(key, False), bool):
            yield f"{key} {found[key]!r:.40}, expected true or false"
    quick_gelu = bool(found.get("quick_gelu"))
    # A ResNet is refused, whatever else it says.
    if not isinstance(found["vision_cfg"].get("layers"), list):
        yield from _wrong_options("vision_cfg", found["vision_cfg"], open_clip.CLIPVisionCfg)
        yield from _wrong_kwargs("vision_cfg", found["vision_cfg"], quick_gelu)
        yield from _wrong_vision(_VISION | found["vision_cfg"], found["embed_dim"])
    yield from _wrong_options("text_cfg", found["text_cfg"], open_clip.CLIPTextCfg)
    yield from _wrong_kwargs("text_cfg", found["text_cfg"], quick_gelu)
    text = _TEXT | found["text_cfg"]
    sizes = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
    yield from _wrong_sizes("text_cfg.", text, sizes)
    if text["width"] % text["heads"]:
        yield f"text_cfg.width {text['width']}, expected a multiple of heads, {text['heads']}"


def _wrong_vision(vision: Mapping[str, Any], embed_dim: int) -> Iterator[str]:
    """What is wrong with the sizes of an image tower whose values have the right types."""
    sizes = ("width", "head_width", "mlp_ratio", "patch_size", "image_size", "layers",
             "attn_pooler_heads", "attn_pooler_queries")  # fmt: skip
    yield from _wrong_sizes("vision_cfg.", vision, sizes)
    if not 0 <= vision.get("patch_dropout", 0) < 1:
        yield f"vision_cfg.patch_dropout {vision['patch_dropout']}, expected a share below 1"
    if vision["width"] % vision["head_width"]:
        yield (f"vision_cfg.width {vision['width']}, expected a multiple of head_width, "
               f"{vision['head_width']}")  # fmt: skip
    if min(_pair(vision["image_size"])) < vision["patch_size"]:
        yield (f"vision_cfg.image_size {vision['image_size']}, expected at least patch_size, "
               f"{vision['patch_size']}")  # fmt: skip
    if vision.get("attentional_pool"):
        if embed_dim % vision["attn_pooler_heads"]:
            yield (f"embed_dim {embed_dim}, expected a multiple of vision_cfg.attn_pooler_heads, "
                   f"{vision['attn_pooler_heads']}")  # fmt: skip
        if vision["attn_pooler_queries"] < 2 and vision.get("pool_type") == "avg":
            yield "vision_cfg.attn_pooler_queries 1 with pool_type avg, expected 2 or more"


def _wrong_options(part: str, options: Mapping[str, Any], kind: type) -> Iterator[str]:
    """Compare options with the dataclass that open_clip makes of them."""
    hints, defaults = get_type_hints(kind), {field.name: field.default for field in fields(kind)}
    for key, value in options.items():
        if key not in hints:
            yield f"{part}.{key}, expected other keys{did_you_mean(key, hints)}"
        # The default of some does not have their type, open_clip's own jsons have no timm_proj so.
        elif value not in (defaults[key], *_NOTHING.get(key, ())) and not _fits(value, hints[key]):
            hint = hints[key]
            expected = hint.__name__ if isinstance(hint, type) else str(hint)
            yield f"{part}.{key} {value!r:.40}, expected {expected.replace('typing.', '')}"


def _wrong_kwargs(part: str, options: Mapping[str, Any], quick_gelu: bool) -> Iterator[str]:
    """Compare keyword arguments with those that GELU and LayerNorm take."""
    for key, kinds in _KWARGS.items():
        for name, value in (options.get(key) or {}).items():
            if name not in kinds:
                yield f"{part}.{key} {name}, expected {', '.join(kinds)}"
            elif not _fits(value, kinds[name]) or (name == "eps" and value < 0):
                yield f"{part}.{key} {name} {value!r:.40}, expected {kinds[name].__name__}"
            elif name == "approximate" and value not in ("none", "tanh"):
                yield f"{part}.{key} {name} {value!r:.40}, expected none or tanh"
            elif name == "approximate" and quick_gelu:
                yield f"{part}.{key} {name} with quick_gelu, expected none"


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
    """Check that there are towers here for a model: the one place that decides.

    Args:
        name: the model, for the message.
        config: as `read_clip_config` returns it.

    Raises:
        ConfigError: there are none.
    """
    wrong = [f"vision {text}" for text in _unsupported_vision(config)]
    wrong += [*text_problems(config), *tokenizer_problems(name, config["text_cfg"])]
    if wrong:
        raise ConfigError(
            f"MODEL.CLIP.NAME {name}: found {', '.join(wrong)}, expected options that the "
            "towers here have; choose another CLIP, such as ViT-B-16-quickgelu"
        )


def _unsupported_vision(config: Mapping[str, Any]) -> list[str]:
    """The options of an image tower that neither `CLIPViT` nor `CLIPTimm` can do."""
    vision = _VISION | config["vision_cfg"]
    if vision.get("timm_model_name"):
        return _unsupported_timm(vision)
    if not isinstance(vision["layers"], int):
        return ["layers of a ResNet"]
    wrong = []
    if vision.get("pool_type", "tok") not in ("tok", "avg"):
        wrong.append(f"pool_type {vision['pool_type']}")
    table, (rows, columns) = vision.get("pos_embed_type", "learnable"), _grid(vision)
    if table not in ("learnable", "sin_cos_2d") or (table == "sin_cos_2d" and rows != columns):
        wrong.append(f"pos_embed_type {table} of {rows}x{columns} patches")
    if vision.get("block_type") not in (None, "default", "custom"):
        wrong.append(f"block_type {vision['block_type']}")
    if _is_custom(vision) and vision.get(_SCALED_COSINE):
        wrong.append(_SCALED_COSINE)
    return wrong


def _unsupported_timm(vision: Mapping[str, Any]) -> list[str]:
    """What `CLIPTimm` cannot do of a network of timm."""
    import timm

    name = vision["timm_model_name"]
    if not timm.is_model(name):
        return [f"timm_model_name {name}, which timm {timm.__version__} does not have"]
    family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
    if family in _ONE_SIZE:
        return [f"timm_model_name {name} of timm's {family}, whose tables of positions are of one "
                "image size"]  # fmt: skip
    if vision.get("timm_pool") in ("abs_attn", "rot_attn"):
        return [f"timm_pool {vision['timm_pool']}"]
    if family not in _TIMM:
        return [f"timm_model_name {name} of timm's {family}, not of its {', '.join(_TIMM)}"]
    return []


def _is_custom(vision: Mapping[str, Any]) -> bool:
    """Whether open_clip takes its custom block; it ignores the options of others."""
    asked = any(vision.get(key) for key in (*_BLOCK_PARTS, _SCALED_COSINE))
    return vision.get("block_type") == "custom" or (vision.get("block_type") is None and asked)


def vision_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of open_clip's own ViT as keyword arguments of `CLIPViT`."""
    vision = _VISION | config["vision_cfg"]
    width, custom = vision["width"], _is_custom(vision)
    # A layer that scales by 0 is one, too.
    scales = {"ls_init_value": vision.get("ls_init_value") is not None}
    parts = scales | {key: custom and vision.get(key) for key in _BLOCK_PARTS}
    return {
        "width": width,
        "layers": vision["layers"],
        "heads": width // vision["head_width"],
        "hidden": int(width * vision["mlp_ratio"]),
        "patch_size": vision["patch_size"],
        "grid_size": _grid(vision),
        "embed_dim": config["embed_dim"],
        "quick_gelu": bool(config.get("quick_gelu", False)),
        "ln_pre": not vision.get("no_ln_pre", False),
        "pool_type": vision.get("pool_type", "tok"),
        "final_ln_after_pool": bool(vision.get("final_ln_after_pool")),
        "attn_pooler_heads": vision["attn_pooler_heads"] if vision.get("attentional_pool") else 0,
        "attn_pooler_queries": vision["attn_pooler_queries"],
        "act_kwargs": vision.get("act_kwargs"),
        "norm_kwargs": vision.get("norm_kwargs"),
        "block_parts": tuple(key for key, has in parts.items() if has),
    }


def _grid(vision: Mapping[str, Any]) -> tuple[int, int]:
    height, width = _pair(vision["image_size"])
    return height // vision["patch_size"], width // vision["patch_size"]


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
