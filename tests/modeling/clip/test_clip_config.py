"""Every model of open_clip and every value in a model json: supported, or refused in one line."""

from __future__ import annotations

import builtins
import copy
import io
import json
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import open_clip
import pytest
import torch
from helpers.clip_files import TINY_CLIP, fails, random_clip, tiny_config, write_json
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, _build_vision_tower
from open_clip.transformer import TextTransformer, VisionTransformer
from safetensors.torch import save_file

from tagclip.errors import CheckpointError, ConfigError, TagCLIPError
from tagclip.modeling.backbone import CLIPViT
from tagclip.modeling.clip import CLIPSource, source
from tagclip.modeling.clip.config import canonical_name, read_clip_config

# All names


class Downloaded(Exception):
    """Where a download would begin."""


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can be opened, no weights can be fetched."""

    def never(*args: Any, **kwargs: Any) -> None:
        pytest.fail(f"opened {args}")

    def fetch(*args: Any) -> None:
        raise Downloaded

    for module, name in ((builtins, "open"), (io, "open"), (os, "open")):
        monkeypatch.setattr(module, name, never)
    for name in ("fetch_tag", "fetch_tokenizer", "fetch_config"):
        monkeypatch.setattr(source, name, fetch)


def answer(name: str, tag: str) -> str:
    """The one line with which a model is refused; "" if its files would be fetched."""
    try:
        _ = CLIPSource(name, tag).path
    except Downloaded:
        return ""
    except ConfigError as error:
        return str(error)
    raise AssertionError("neither refused nor fetched")


@pytest.mark.parametrize("name", open_clip.list_models())
def test_every_name_is_supported_or_refused_before_a_file_is_opened(
    name: str, closed: None
) -> None:
    tags = open_clip.list_pretrained_tags_by_model(name) or [""]
    for tag in tags:
        said = answer(name, tag) if tag else ""
        config = open_clip.get_model_config(name)
        if not tag:
            try:
                _ = CLIPSource(name).config
            except ConfigError as error:
                said = str(error)
        if not said:
            if "timm_model_name" not in config["vision_cfg"]:
                assert_clip(name, config)
            continue
        assert "\n" not in said and said.startswith(f"MODEL.CLIP.NAME {name}: ")
        if "QuickGELU" in said:
            other = f"{name}-quickgelu" if "add the" in said else name.removesuffix("-quickgelu")
            assert other in open_clip.list_models() and answer(other, tag) == ""
        else:
            assert any(word in said for word in (*config["vision_cfg"], "a ResNet", "text "))


def assert_clip(name: str, config: dict[str, Any]) -> None:
    """open_clip builds the image tower that this library has, of its own modules."""
    vision, quick_gelu = CLIPVisionCfg(**config["vision_cfg"]), config.get("quick_gelu", False)
    with torch.device("meta"):
        visual = _build_vision_tower(config["embed_dim"], vision, quick_gelu)
        tower = CLIPViT(**CLIPSource(name).vision_config())
    assert isinstance(visual, VisionTransformer)
    ours = sorted(tuple(parameter.shape) for parameter in tower.parameters())
    assert ours == sorted(tuple(parameter.shape) for parameter in visual.parameters())


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"pool_type": "none"}, "text pool_type none"),
        ({"proj_type": "none"}, "text proj_type none with width 32"),
        ({"proj_type": "mlp"}, "text proj_type mlp"),
        ({"embed_cls": True}, "text embed_cls without custom_text"),
        ({"hf_model_name": "a/b", "hf_pooler_type": "max_pooler"}, "text hf_pooler_type max_pool"),
        ({"hf_model_name": "a/b", "hf_proj_type": "none"}, "text hf_proj_type none"),
        ({"tokenizer_kwargs": {"reduction_mask": "simple"}}, "text tokenizer_kwargs reduction_"),
        ({"tokenizer_kwargs": {"clean": "upper"}}, "text tokenizer_kwargs clean 'upper'"),
        (
            {"hf_tokenizer_name": "a/b", "tokenizer_kwargs": {"trust_remote_code": True}},
            "text tokenizer_kwargs trust_remote_code True",
        ),
    ],
)
def test_a_text_tower_that_cannot_be_used_costs_no_download(
    options: dict[str, Any], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(embed_dim=16 if "width" in found else 32)
    config["text_cfg"] |= options
    path = write_json(tmp_path / "clip.json", config)
    for name in ("fetch_tag", "fetch_tokenizer", "find_weight_file", "read_clip_weights"):
        monkeypatch.setattr(source, name, lambda *args: pytest.fail(f"fetched {args}"))
    for pretrained in ("", "hf-hub:org/clip", "clip.pt"):
        model = CLIPSource(str(path), pretrained)
        actions = (lambda m=model: m.path, model.text_tower, model.state_dict)
        for action in actions[not pretrained :]:
            fails(ConfigError, action, path, found)


def test_a_tokenizer_out_of_reach_costs_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "fetch_tag", lambda *args: pytest.fail(f"fetched {args}"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = CLIPSource("ViT-H-14-worldwide", "metaclip2_worldwide", cache_dir=str(tmp_path))
    parts = "its tokenizer facebook/xlm-v-base", "MODEL.CLIP.TOKENIZER", "hf download"
    fails(CheckpointError, lambda: model.path, model.name, *parts)


# Other names


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("ViT-B/16", "ViT-B-16"),
        ("ViT-B/32", "ViT-B-32"),
        ("ViT-L/14@336px", "ViT-L-14-336"),
        ("ViT-B-16/quickgelu", "ViT-B-16-quickgelu"),
    ],
)
def test_openais_spelling_is_understood(spelling: str, name: str) -> None:
    assert CLIPSource(spelling).config == open_clip.get_model_config(name)


def test_an_unknown_name_says_which_is_near_and_what_else_may_stand() -> None:
    fails(ConfigError, lambda: CLIPSource("ViT-B-16-quikgelu").config, "mean ViT-B-16-quickgelu")
    fails(ConfigError, lambda: CLIPSource("org/clip").config, "or hf-hub:ORGANISATION/REPOSITORY")


def folder(path: Path, config: dict[str, Any]) -> Path:
    """Weights and config of a model as open_clip pushes them to the hub."""
    path.mkdir()
    write_json(path / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": {}})
    save_file(dict(random_clip().state_dict()), path / "open_clip_model.safetensors")
    return path


def test_a_local_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "clip", TINY_CLIP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    places = [str(path), f"{path}/", "clip", "./clip", "~/clip", "$HOME/clip"]
    for place in places:
        for name in (place, f"local-dir:{place}"):
            named = CLIPSource(name, name)
            assert named.config == TINY_CLIP
            assert named.state_dict().keys() == random_clip().state_dict().keys()
            file = f"{name.rstrip('/')}/open_clip_config.json"
            assert CLIPSource(file, place).config == TINY_CLIP
            other = CLIPSource(name, "openai")
            there = os.path.expandvars(os.path.expanduser(place)).rstrip("/")
            fails(CheckpointError, lambda other=other: other.path, "'openai'", f"set it to {there}")


def test_a_folder_with_the_name_of_a_model_is_not_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "ViT-B-16", TINY_CLIP)
    monkeypatch.chdir(tmp_path)
    assert CLIPSource("ViT-B-16").config == open_clip.get_model_config("ViT-B-16")
    assert CLIPSource("./ViT-B-16").config == TINY_CLIP


@pytest.mark.parametrize("name", ["/missing/clip", "./missing", "../missing", "~/missing"])
def test_a_missing_folder_is_named(name: str) -> None:
    path = os.path.join(os.path.expanduser(name), "open_clip_config.json")
    fails(
        ConfigError, lambda: CLIPSource(name).config, f"model json {Path(path)}", "check the path"
    )


@pytest.mark.parametrize("identifier", ["", "missing", "a\0b"])
def test_a_folder_without_config_is_named(identifier: str) -> None:
    path = Path(identifier) / "open_clip_config.json"
    action = lambda: CLIPSource(f"local-dir:{identifier}").config  # noqa: E731
    fails(ConfigError, action, repr(str(path))[1:-1] if identifier else path, "check the path")


def test_a_repository_in_the_cache_needs_no_network(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--clip"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0123")
    (cache / "snapshots").mkdir()
    folder(cache / "snapshots" / "0123", TINY_CLIP)
    named = CLIPSource("hf-hub:org/clip", "hf-hub:org/clip", cache_dir=str(tmp_path))
    assert named.config == TINY_CLIP
    assert named.path == cache / "snapshots" / "0123" / "open_clip_model.safetensors"
    assert named.state_dict()
    other = CLIPSource("hf-hub:org/clip", "openai", cache_dir=str(tmp_path))
    fails(CheckpointError, lambda: other.path, "set it to hf-hub:org/clip, whose weights")


def test_a_repository_out_of_reach_says_what_to_fetch(tmp_path: Path) -> None:
    cache = {"cache_dir": str(tmp_path)}
    place = "huggingface.co/org/clip/resolve/main/open_clip_config.json"
    named = CLIPSource("hf-hub:org/clip", **cache)
    fails(CheckpointError, lambda: named.config, "hf-hub:org/clip: not cached", place, "local-dir:")
    weights = CLIPSource("ViT-B-16", "hf-hub:org/clip", **cache)
    place = "huggingface.co/org/clip/resolve/main/open_clip_model.safetensors"
    fails(CheckpointError, lambda: weights.path, place, "MODEL.CLIP.PRETRAINED to its path")


def test_weights_of_a_repository_come_with_their_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which tells their activation and pixels, also where another model is named."""
    snapshot = tmp_path / "models--org--clip" / "snapshots" / "0123"
    (tmp_path / "models--org--clip" / "refs").mkdir(parents=True)
    (tmp_path / "models--org--clip" / "refs" / "main").write_text("0123")
    snapshot.parent.mkdir()
    content = (folder(snapshot, TINY_CLIP) / "open_clip_config.json").read_text()
    half = {"mean": [0.5] * 3, "std": [0.25] * 3}
    content = json.dumps(json.loads(content) | {"preprocess_cfg": half})
    (snapshot / "open_clip_config.json").unlink()
    model = write_json(tmp_path / "model.json", TINY_CLIP | {"quick_gelu": False})
    named = CLIPSource(str(model), "hf-hub:org/clip", cache_dir=str(tmp_path))
    place = "huggingface.co/org/clip/resolve/main/open_clip_config.json"
    remedy = "MODEL.CLIP.PRETRAINED to a folder with it and the weights"
    fails(CheckpointError, lambda: named.path, "its weights hf-hub:org/clip", place, remedy)

    def download(*args: str, cache_dir: str) -> str:
        (snapshot / args[1]).write_text(content)
        return str(snapshot / args[1])

    monkeypatch.setattr(huggingface_hub, "get_session", Mock)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert named.pixel_statistics == half
    fails(ConfigError, named.state_dict, "were trained with QuickGELU")


@pytest.mark.parametrize("identifier", ["", "a/b/c", "../clip", "a b/c"])
def test_what_no_repository_is_called_is_named(identifier: str, tmp_path: Path) -> None:
    named = CLIPSource(f"hf-hub:{identifier}", cache_dir=str(tmp_path))
    fails(CheckpointError, lambda: named.config, repr(identifier), "ORGANISATION/REPOSITORY")
    weights = CLIPSource("ViT-B-16", f"hf-hub:{identifier}", cache_dir=str(tmp_path))
    fails(CheckpointError, lambda: weights.path, identifier, "ORGANISATION/REPOSITORY")


def test_a_downloaded_config_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one look at the hub, by its own client, into the cache that is configured."""
    path = write_json(tmp_path / "open_clip_config.json", {"model_cfg": TINY_CLIP})
    asked = []

    class Session:
        def head(self, address: str, timeout: float) -> None:
            asked.append(address)

    def download(*args: str, cache_dir: str) -> str:
        asked.append((*args, cache_dir))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert CLIPSource("hf-hub:org/clip", cache_dir=str(tmp_path)).config == TINY_CLIP
    assert asked[1:] == [("org/clip", "open_clip_config.json", str(tmp_path))]


# The activation's remedy can be done


def test_the_remedy_names_a_suffix_only_where_there_is_one(tmp_path: Path) -> None:
    path = folder(tmp_path / "clip", tiny_config(quick_gelu=False))
    for config, name, remedy in (
        (TINY_CLIP, f"{path}/open_clip_config.json", '"quick_gelu": true in its json'),
        (TINY_CLIP, "ViT-S-16", '"quick_gelu": true in its json'),
        (TINY_CLIP, "ViT-B-32", "add the suffix -quickgelu"),
        (tiny_config(quick_gelu=False), "ViT-B-32-quickgelu", "remove the suffix -quickgelu"),
    ):
        weights = folder(tmp_path / f"weights {name.replace('/', '-')}", config)
        fails(ConfigError, CLIPSource(name, str(weights)).state_dict, "QuickGELU", name, remedy)


# Values of a model json

POOLED = {"vision_attentional_pool": True, "vision_pool_type": "avg"}

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 3, 7, 0.5, 2.5, 1e9, 10**12, "x", "", [], [1], [16, 16],
    [1, 2, 3, 4], ["x", "y"], {}, {"a": 1}, {"eps": 1e-6},
]  # fmt: skip


def odd_configs() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Each key of a model json with each odd value."""
    keys = [(part, f.name) for part, kind in (("vision_cfg", CLIPVisionCfg),
            ("text_cfg", CLIPTextCfg)) for f in fields(kind)]  # fmt: skip
    keys += [("vision_cfg", "unknown"), ("text_cfg", "unknown")]
    top = ("embed_dim", "quick_gelu", "custom_text", "vision_cfg", "text_cfg", "unknown")
    for part, key in [*keys, *(("", key) for key in top)]:
        for value in ODD:
            config = copy.deepcopy(TINY_CLIP)
            (config[part] if part else config)[key] = value
            yield key, value, config


def build(path: Path) -> None:
    """Build both towers as a training does, without memory for their weights."""
    named = CLIPSource(str(path))
    with torch.device("meta"):
        tower = CLIPViT(**named.vision_config())
        model = named._build()
    if "tokenizer_kwargs" in named.config["text_cfg"]:
        named.tokenize(["cat"])
    assert named.context_length > 0
    text = getattr(model, "text", model)
    assert isinstance(getattr(text, "transformer", None), torch.nn.Module)
    assert text.token_embedding.weight.shape[0] > 0
    if hasattr(model, "text"):
        assert isinstance(model.text, TextTransformer)
    sizes = [sorted(tuple(p.shape) for p in m.parameters()) for m in (tower, model.visual)]
    assert sizes[0] == sizes[1], "open_clip builds another tower"


def test_every_key_with_every_odd_value_builds_or_is_named(tmp_path: Path) -> None:
    path, outcomes = tmp_path / "model.json", {"built": 0, "refused": 0}
    for key, value, config in odd_configs():
        write_json(path, config)
        try:
            build(path)
            outcomes["built"] += 1
        except TagCLIPError as error:
            said, outcomes["refused"] = str(error), outcomes["refused"] + 1
            assert "\n" not in said and str(path) in said, f"{key} {value!r}: {said}"
            known = key in said or "open_clip cannot build it" in said or "a ResNet" in said
            assert known, f"{key} {value!r}: {said}"
    assert min(outcomes.values()) > 200, outcomes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"vision_patchsize": 16},
            "vision_cfg.patchsize, expected other keys; did you mean patch_",
        ),
        ({"vision_width": "768"}, "vision_cfg.width '768', expected int"),
        ({"vision_image_size": [64]}, "vision_cfg.image_size [64], expected Union[Tuple[int, int]"),
        ({"vision_head_width": 0}, "vision_cfg.head_width 0, expected a size from 1"),
        ({"vision_head_width": 24}, "width 64, expected a multiple of head_width, 24"),
        ({"vision_image_size": 8}, "image_size 8, expected at least patch_size, 16"),
        ({"text_heads": 5}, "text_cfg.width 32, expected a multiple of heads, 5"),
        ({"text_tokenizer_kwargs": 3}, "text_cfg.tokenizer_kwargs 3, expected Optional[dict]"),
        ({"quick_gelu": "yes"}, "quick_gelu 'yes', expected true or false"),
        ({"quickgelu": True}, "quickgelu, expected other keys; did you mean quick_gelu"),
        ({"vision_global_average_pool": True}, "vision_cfg.global_average_pool, expected other"),
        ({"vision_patch_size": [16, 8]}, "vision_cfg.patch_size [16, 8], expected int"),
        ({"vision_act_kwargs": {"a": 1}}, "vision_cfg.act_kwargs a, expected approximate"),
        ({"vision_act_kwargs": {"approximate": "x"}}, "approximate 'x', expected none or tanh"),
        ({"vision_act_kwargs": {"approximate": "tanh"}}, "approximate with quick_gelu, expected"),
        ({"vision_norm_kwargs": {"eps": "x"}}, "vision_cfg.norm_kwargs eps 'x', expected float"),
        ({"vision_norm_kwargs": {"eps": -1}}, "vision_cfg.norm_kwargs eps -1, expected float"),
        ({"text_norm_kwargs": {"a": 1}}, "text_cfg.norm_kwargs a, expected eps, elementwise_aff"),
        (POOLED | {"vision_attn_pooler_heads": 7}, "embed_dim 32, expected a multiple of vision_"),
        (POOLED | {"vision_attn_pooler_heads": 0}, "attn_pooler_heads 0, expected a size from 1"),
        (POOLED | {"vision_attn_pooler_queries": 1}, "attn_pooler_queries 1 with pool_type avg"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write_json(tmp_path / "model.json", tiny_config(**changes))
    fails(ConfigError, lambda: CLIPSource(str(path)).config, path, said, "open_clip/model_configs")


def test_what_open_clip_cannot_build_is_said_in_one_line(tmp_path: Path) -> None:
    both = {"text_qk_norm": True, "text_scaled_cosine_attn": True}
    path = write_json(tmp_path / "model.json", tiny_config(**both))
    fails(ConfigError, CLIPSource(str(path)).state_dict, path, "cannot build it (AssertionError: ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_layers": [1, 1, 1, 1], "vision_patch_size": None}, "vision layers of a ResNet"),
        ({"vision_pool_type": "none"}, "vision pool_type none"),
        ({"vision_pos_embed_type": "rotary"}, "vision pos_embed_type rotary of 4x4 patches"),
        (
            {"vision_pos_embed_type": "sin_cos_2d", "vision_image_size": [64, 32]},
            "vision pos_embed_type sin_cos_2d of 4x2 patches",
        ),
        ({"vision_block_type": "resnet"}, "vision block_type resnet"),
        ({"vision_scaled_cosine_attn": True}, "vision scaled_cosine_attn"),
    ],
)
def test_an_image_tower_that_there_is_none_of(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = write_json(tmp_path / "model.json", tiny_config(**changes))
    fails(ConfigError, lambda: CLIPSource(str(path)).config, path, f"found {said}, expected")


@pytest.mark.parametrize("name", open_clip.list_models())
def test_a_copy_of_a_model_json_is_that_model(name: str, tmp_path: Path) -> None:
    config = open_clip.get_model_config(name)
    path = write_json(tmp_path / "open_clip_config.json", {"model_cfg": config})
    for spelling in (str(path), f"local-dir:{tmp_path}", str(tmp_path)):
        assert read_clip_config(canonical_name(spelling)) == config


def test_a_square_patch_may_be_a_pair(tmp_path: Path) -> None:
    path = write_json(tmp_path / "model.json", tiny_config(vision_patch_size=[16, 16]))
    assert CLIPSource(str(path)).config == TINY_CLIP


def test_the_whole_json_of_the_hub_is_a_model_json(tmp_path: Path) -> None:
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": {"mean": [0, 0, 0]}}))
    assert CLIPSource(str(path)).config == TINY_CLIP
