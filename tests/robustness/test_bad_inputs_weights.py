"""Bad checkpoints and CLIP weights: of other models, truncated, malicious, out of reach."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bench import NO_TEST, Bench, files_below, refused, refused_as_process
from helpers.clip_files import TINY_CLIP, random_clip, tiny_config
from helpers.paths import TOOLS
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import changed, load_tool
from safetensors.torch import save_file

from tagclip import TagCLIPPredictor
from tagclip.checkpoint import read_checkpoint
from tagclip.modeling.clip import CLIPSource

EXPORTERS = ("export_model", "convert_checkpoint")


def refused_checkpoint(bench: Bench, weights: Path, *parts: Any, opts: tuple = ()) -> None:
    """Evaluation names the file, says why, and changes or writes nothing."""
    call = bench.evaluation(weights, *opts)
    before = files_below(bench.root)
    refused(call, f"CheckpointError: {weights}: ", *parts)
    assert files_below(bench.root) == before


OTHER_MODELS = {
    "prompts": (("MODEL.CLIP.PROMPT.NUM_TOKENS", 5), "tokens: found 4x3x64, expected 4x5x64"),
    "decoder": (("MODEL.TAGCLIP.LAYERS", "aann"), "found nothing, expected 32"),
    "heads": (("MODEL.TAGCLIP.NUM_HEADS", 2), "NUM_HEADS: found 4, expected 2"),
}


def test_checkpoint_of_another_model(bench: Bench) -> None:
    remedy = "use the config it was trained with, or evaluate what fits with TEST.ALLOW_PARTIAL_WEI"
    for opts, found in OTHER_MODELS.values():
        refused_checkpoint(bench, bench.weights, "does not fit the model", found, remedy, opts=opts)
    opts, found = OTHER_MODELS["heads"]
    refused(bench.training("MODEL.WEIGHTS", bench.weights, *opts), bench.weights, found)


def test_checkpoint_with_a_tensor_of_the_classes(bench: Bench) -> None:
    """A head with one row per class belongs to another method."""
    content = torch.load(bench.weights, weights_only=True)
    content["model"]["sem_seg_head.class_bias"] = torch.zeros(5)
    torch.save(content, bench.weights)
    found = "sem_seg_head.class_bias: found 5, expected nothing"
    refused_checkpoint(bench, bench.weights, found, "TEST.ALLOW_PARTIAL_WEIGHTS True")


def test_partial_weights_can_be_allowed(bench: Bench) -> None:
    opts, found = OTHER_MODELS["prompts"]
    call = bench.evaluation(bench.weights, *opts, "TEST.ALLOW_PARTIAL_WEIGHTS", True)
    call()
    assert f"{found}; loading the rest" in bench.said()
    assert list(bench.root.glob("evaluated/inference/*/metrics.json"))


@pytest.mark.parametrize("value", [None, 3, "text", [1]])
def test_metadata_that_are_none_are_those_of_a_bare_file(bench: Bench, value: Any) -> None:
    """They cannot be checked, which is said; the tensors are evaluated."""
    content = torch.load(bench.weights, weights_only=True) | {"tagclip": value}
    torch.save(content, bench.weights)
    bench.evaluation(bench.weights)()
    assert "holds no fingerprints" in bench.said()
    assert list(bench.root.glob("evaluated/inference/*/metrics.json"))


def test_truncated_checkpoint(bench: Bench) -> None:
    """At every length; the previous one is named."""
    content, later = bench.weights.read_bytes(), bench.output / "model_later.pth"
    other = "model_final.pth beside it can be read"
    for size in (0, 1, 1000, len(content) // 2, len(content) - 1):
        later.write_bytes(content[:size])
        found = f"file is incomplete ({size} bytes), expected the whole of what torch.save wrote"
        refused_checkpoint(bench, later, found, other)


def test_truncated_last_checkpoint(bench: Bench) -> None:
    """--resume refuses, too, instead of starting anew or from an older one."""
    content = bench.weights.read_bytes()
    later = bench.output / "model_later.pth"
    later.write_bytes(content[:2000])
    (bench.output / "last_checkpoint").write_text(later.name)
    call, before = bench.training(resume=True), files_below(bench.output)
    refused(call, f"CheckpointError: {later}: file is incomplete (2000 bytes)", "model_final.pth")
    assert files_below(bench.output) == before


def test_truncated_safetensors(bench: Bench) -> None:
    """Its header says how many bytes there should be."""
    path = bench.root / "w.safetensors"
    save_file(read_checkpoint(bench.weights)["model"], path)
    content = path.read_bytes()
    for size in (len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        refused_checkpoint(bench, path, f"file is incomplete ({size} of {len(content)} bytes)")
    path.write_bytes(content[:20])
    refused_checkpoint(bench, path, "file is incomplete or damaged (20 bytes")


def test_truncated_checkpoint_as_a_process(bench: Bench) -> None:
    (bench.root / "w.pth").write_bytes(bench.weights.read_bytes()[:2000])
    command = ("train_net.py", "--eval-only", "MODEL.WEIGHTS", "w.pth", "OUTPUT_DIR", "out")
    line = "CheckpointError: w.pth: file is incomplete (2000 bytes), expected the whole of what"
    refused_as_process(bench.root, command, line)
    assert not (bench.root / "out").exists()


def test_weights_that_are_not_finite(bench: Bench) -> None:
    """Wherever they are loaded; nothing is drawn, written or trained."""
    content = torch.load(bench.weights, weights_only=True)
    next(iter(content["model"].values())).view(-1)[0] = torch.nan
    torch.save(content, bench.weights)
    image, out = bench.save_image("a.png"), bench.root / "out"
    found = f"CheckpointError: {bench.weights}: found values that are not finite in backbone."
    export, converter = (load_tool(TOOLS / f"{name}.py") for name in EXPORTERS)
    words = [
        "--weights",
        bench.weights,
        "--vocab",
        "cat",
        "--output",
        out,
        "--format",
        "torchscript",
    ]
    full = [bench.weights, out / "full.pth", "--full", "--config-file", bench.config]
    calls = {
        "fine-tuning": bench.training("MODEL.WEIGHTS", bench.weights, *NO_TEST),
        "resuming": bench.training(resume=True),
        "evaluation": bench.evaluation(bench.weights),
        "predictor": bench.predictor,
        "from_checkpoint": lambda: TagCLIPPredictor.from_checkpoint(bench.weights),
        "export": lambda: export.main(export.parse_args(list(map(str, words)))),
        "conversion": lambda: converter.main(converter.parse_arguments(list(map(str, full)))),
    }
    before = files_below(bench.root)
    for call in calls.values():
        refused(call, found, "take an earlier checkpoint of the run")
    line = bench.demo("--input", image, "--output", out)
    assert str(line).startswith(found)
    assert files_below(bench.root) == before


class Bomb:
    """Reading it as a pickle makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (self.path,)


def test_malicious_pickle(bench: Bench) -> None:
    made = bench.root / "made"
    for name in ("w.pkl", "w.pth", "old.pth", "w"):
        path = bench.root / name
        path.write_bytes(pickle.dumps({"model": Bomb(made)}, protocol=2))
        if name == "w.pth":
            torch.save({"model": Bomb(made)}, path)
        parts = ("file is unsafe", "which may execute code", "expected tensors")
        if path.suffix != ".pth":
            parts = ("found a", "expected .pth or .safetensors", "may execute code")
        refused_checkpoint(bench, path, *parts)
        refused(bench.training("MODEL.WEIGHTS", path), "CheckpointError: ", path, *parts)
    assert not made.exists() and not bench.output.exists()
    torch.load(bench.root / "w.pth", weights_only=False)
    assert made.exists(), "the file is harmless: it tests nothing"


def test_malicious_clip_weights(bench: Bench) -> None:
    path = bench.root / "clip.pt"
    torch.save({"visual.class_embedding": Bomb(bench.root / "made")}, path)
    call = bench.training("MODEL.CLIP.PRETRAINED", path)
    refused(call, f"CheckpointError: {path}: ", "unsafe")
    assert not (bench.root / "made").exists() and not bench.output.exists()


def test_malicious_yaml(bench: Bench) -> None:
    """In the config, and in the config that a checkpoint brings."""
    text = f"SEED: !!python/object/apply:os.mkdir ['{bench.root}/made']\n"
    bench.config.write_text(text)
    refused(bench.training(), f"ConfigError: {bench.config}: not a plain yaml file", "without tags")
    content = torch.load(bench.weights, weights_only=True)
    content["tagclip"]["config"] = text
    torch.save(content, bench.weights)
    line = bench.demo("--input", bench.save_image("a.png"), "--output", bench.root / "out")
    assert line.startswith(f"CheckpointError: {bench.weights}: found no config in it")
    assert "\n" not in line and not (bench.root / "out").exists()
    assert not (bench.root / "made").exists()


def test_other_clip_weights(bench: Bench) -> None:
    """The checksum travels in the checkpoint."""
    paths = [bench.root / f"clip{seed}.safetensors" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        save_file(dict(random_clip(seed=seed).state_dict()), path)
    cfg = changed(bench.cfg, "MODEL.CLIP.PRETRAINED", str(paths[0]))
    weights = save_tiny(cfg, bench.output)
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    found = f"clip_sha256: found {sums[0]}, expected {sums[1]} (MODEL.CLIP.PRETRAINED)"
    refused_checkpoint(bench, weights, found, opts=("MODEL.CLIP.PRETRAINED", paths[1]))
    call = bench.evaluation(weights, "MODEL.CLIP.PRETRAINED", paths[0])
    call()


def test_clip_of_another_architecture(bench: Bench) -> None:
    path = bench.root / "clip.safetensors"
    other = random_clip(tiny_config(vision_width=32, vision_layers=2))
    save_file(dict(other.state_dict()), path)
    call = bench.training("MODEL.CLIP.PRETRAINED", path)
    refused(call, f"CheckpointError: {path}: ", "blocks.2", "check MODEL.CLIP.NAME")
    assert not bench.output.exists()


def test_clip_of_another_activation(bench: Bench) -> None:
    """Between tag and model, and between checkpoint and model."""
    call = bench.training("MODEL.CLIP.NAME", "ViT-B-16", "MODEL.CLIP.PRETRAINED", "openai")
    refused(
        call,
        "ConfigError: MODEL.CLIP.NAME ViT-B-16: the weights 'openai' were trained with QuickGELU",
        "expected a model with it; add the suffix -quickgelu",
    )
    assert not bench.output.exists()
    path = bench.root / "gelu.json"
    path.write_text(json.dumps(TINY_CLIP | {"quick_gelu": False}))
    found = "quick_gelu: found True, expected False (MODEL.CLIP.NAME)"
    refused_checkpoint(bench, bench.weights, found, opts=("MODEL.CLIP.NAME", path))


OPENAI = ("MODEL.CLIP.NAME", "ViT-B-16-quickgelu", "MODEL.CLIP.PRETRAINED", "openai")


def test_download_without_a_network(bench: Bench) -> None:
    """What to fetch, and where it goes."""
    call = bench.training(*OPENAI, "MODEL.CLIP.CACHE_DIR", bench.root / "cache")
    place = "huggingface.co/timm/vit_base_patch16_clip_224.openai/resolve/main/open_clip_model"
    refused(
        call,
        f"CheckpointError: CLIP weights ViT-B-16-quickgelu/openai: not cached, and https://{place}",
        "fetch that file on a machine with a network",
        "set MODEL.CLIP.PRETRAINED to its path",
    )
    assert not bench.output.exists()


def cached(folder: Path, content: bytes, name: str) -> Path:
    """A file in a cache of the hub, whose content is called by its checksum."""
    folder = folder / "models--timm--vit_base_patch16_clip_224.openai"
    blob, file = folder / "blobs" / name, folder / "snapshots" / "0" / "open_clip_model.safetensors"
    for path in (blob, file, folder / "refs" / "main"):
        path.parent.mkdir(parents=True)
    (folder / "refs" / "main").write_text("0")
    blob.write_bytes(content)
    file.symlink_to(Path("..", "..", "blobs", name))
    return file


def test_damaged_download(bench: Bench) -> None:
    """The hub's checksum is compared; a whole file needs no network."""
    content = b"weights of CLIP"
    name = hashlib.sha256(content).hexdigest()
    file = cached(bench.root / "whole", content, name)
    assert CLIPSource(*OPENAI[1::2], cache_dir=str(bench.root / "whole")).path == file
    file = cached(bench.root / "damaged", content[:-1], name)
    call = bench.training(*OPENAI, "MODEL.CLIP.CACHE_DIR", bench.root / "damaged")
    found = hashlib.sha256(content[:-1]).hexdigest()
    blob = bench.root / "damaged" / "models--timm--vit_base_patch16_clip_224.openai" / "blobs"
    refused(
        call,
        f"CheckpointError: {file}: sha256 is {found}, expected {name}; the download is damaged",
        f"move {blob / name} away and start again with a network",
    )
    assert not bench.output.exists()
