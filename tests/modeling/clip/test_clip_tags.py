"""open_clip's tags, cached or out of reach, and its model names."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
from helpers.clip_files import fails, random_clip, sha256, tiny_config, write_json
from open_clip.model import CLIP
from safetensors.torch import save_file

from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.clip import CLIPSource
from tagclip.modeling.clip.download import fetch_tag


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return random_clip()


def test_a_cached_tag_needs_no_network(tmp_path: Path) -> None:
    folder = tmp_path / "models--timm--vit_base_patch16_clip_224.openai"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123")
    cached = folder / "snapshots" / "0123" / "open_clip_model.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    source = CLIPSource("ViT-B-16-quickgelu", "openai", cache_dir=str(tmp_path))
    assert source.path == cached
    assert source.sha256 == sha256(cached)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "pytorch_model.safetensors"])
def test_a_tag_with_a_file_may_be_cached_as_safetensors(file: str, tmp_path: Path) -> None:
    """open_clip fetches that instead of a .bin where a repository has it."""
    tag = open_clip.get_pretrained_cfg("ViTamin-B", "datacomp1b")["hf_hub"]
    folder = tmp_path / f"models--{os.path.dirname(tag).replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123")
    cached = folder / "snapshots" / "0123" / file
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    assert fetch_tag("ViTamin-B", {"hf_hub": tag}, str(tmp_path)) == cached


def test_an_uncached_tag_offline_says_what_to_fetch(tmp_path: Path) -> None:
    source = CLIPSource("ViT-B-16-quickgelu", "openai", cache_dir=str(tmp_path))
    place = "huggingface.co/timm/vit_base_patch16_clip_224.openai/resolve/main/open_clip_model"
    fails(
        CheckpointError,
        lambda: source.path,
        "ViT-B-16-quickgelu/openai",
        place,
        "MODEL.CLIP.PRETRAINED",
    )


def test_an_unreachable_hub_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def retries(*args: object, **kwargs: object) -> None:
        pytest.fail("open_clip would retry for most of a minute")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(open_clip, "download_pretrained", retries)
    source = CLIPSource("ViT-B-16-quickgelu", "openai", cache_dir=str(tmp_path))
    fails(CheckpointError, lambda: source.path, "http://127.0.0.1:9/timm", "ConnectError")


def test_an_unknown_tag_lists_the_known_ones() -> None:
    source = CLIPSource("ViT-B-32", "laion9b")
    fails(CheckpointError, lambda: source.path, "laion9b", "ViT-B-32", "laion2b_s34b_b79k")


def test_a_tag_wins_over_a_folder_of_that_name(
    tmp_path: Path, clip: CLIP, tiny_clip_json: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openai").mkdir()
    monkeypatch.chdir(tmp_path)
    source = CLIPSource("ViT-B-16-quickgelu", "openai", cache_dir=str(tmp_path))
    fails(CheckpointError, lambda: source.path, "not cached")
    fails(CheckpointError, lambda: CLIPSource(tiny_clip_json, "./openai").path, "no CLIP weights")
    save_file(dict(clip.state_dict()), tmp_path / "openai" / "open_clip_model.safetensors")
    assert CLIPSource(tiny_clip_json, "openai").path.name == "open_clip_model.safetensors"


def test_a_tag_of_another_activation_is_refused() -> None:
    source = CLIPSource("ViT-B-16", "openai")
    fails(ConfigError, lambda: source.path, "ViT-B-16", "openai", "add the suffix -quickgelu")


# Model configs


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("ViT-B-17", "open_clip.list_models()"),
        ("RN50-quickgelu", "a ResNet"),
    ],
)
def test_other_vision_towers_are_refused(name: str, found: str) -> None:
    fails(ConfigError, CLIPSource(name).vision_config, name, found)
    if name != "ViT-B-17":
        fails(ConfigError, CLIPSource(name).state_dict, name, found)


def test_a_bad_model_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    fails(ConfigError, lambda: CLIPSource(str(path)).config, path, "check the path")
    path.write_text("{")
    fails(ConfigError, lambda: CLIPSource(str(path)).config, path)
    for content in ({"embed_dim": 32}, ["embed_dim", "vision_cfg", "text_cfg"]):
        write_json(path, content)
        fails(ConfigError, lambda: CLIPSource(str(path)).config, path, "text_cfg")


def test_a_missing_merges_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies beside the json: one of that name in the current folder is another one."""
    config = tiny_config(text_tokenizer_kwargs={"bpe_path": "merges.gz"})
    path = write_json(tmp_path / "model.json", config)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "merges.gz").touch()
    monkeypatch.chdir(tmp_path / "elsewhere")
    tokenize = CLIPSource(str(path)).tokenize
    fails(ConfigError, lambda: tokenize(["cat"]), path, tmp_path / "merges.gz")


def test_more_merges_than_tokens_are_refused(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "merges.gz", "wt", encoding="utf-8") as file:
        file.write("#version: 0.2\na b\nab c</w>")
    config = tiny_config(text_tokenizer_kwargs={"bpe_path": "merges.gz"}, text_vocab_size=515)
    path = write_json(tmp_path / "model.json", config)
    tokenize = CLIPSource(str(path)).tokenize
    fails(ConfigError, lambda: tokenize(["cat"]), path, "vocab_size 515", "expected 516")
    config["text_cfg"]["vocab_size"] = 516
    assert CLIPSource(str(write_json(path, config))).tokenize(["abc"])[0][1:-1] == [513]
