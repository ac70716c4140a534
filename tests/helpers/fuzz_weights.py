"""Fuzz targets: checkpoints, their metadata, CLIP weights."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml
from helpers.clip_files import random_clip, save_archive, sha256
from helpers.fuzzing import (
    Space,
    Target,
    changed_bytes,
    changed_tree,
    json_values,
    rezipped,
    safetensors_header,
    target,
    tried,
)
from helpers.tiny_checkpoint import build, checkpointer, save_tiny
from hypothesis import strategies as st
from safetensors.torch import save

from tagclip.checkpoint import checkpoint_config, read_checkpoint
from tagclip.checkpoint.conversion.files import convert_file
from tagclip.modeling.clip import read_clip_weights


@target
def checkpoint_metadata(space: Space) -> Target:
    """What a checkpoint says about itself and its training, loaded for every purpose."""
    cfg, model = build(space.cfg, seed=1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    parts = {"optimizer": optimizer}
    apart = space.folder / "whole"
    apart.mkdir()
    checkpointer(cfg, model, apart, **parts).save("whole", iteration=3)
    whole = torch.load(apart / "whole.pth", weights_only=True)
    state = whole.pop("model")
    config = yaml.safe_load(whole["tagclip"]["config"])
    # What is read of it; the rest would be changed most of the time.
    kept = {key: config["MODEL"][key] for key in ("CLIP", "TAGCLIP", "PIXEL_MEAN")}
    whole["tagclip"]["config"] = {"MODEL": kept, "INPUT": {"FORMAT": "RGB"}, "SEED": config["SEED"]}
    path = space.folder / "changed.pth"
    evaluated, resumed = (checkpointer(cfg, model, space.folder, **p) for p in ({}, parts))
    uses = (
        evaluated.load,
        resumed.load,
        checkpoint_config,
        lambda path: convert_file(path, space.folder / "out.pth"),
    )

    def call(drawn: tuple[Any, int]) -> None:
        tree, use = drawn
        about = tree.get("tagclip")
        if isinstance(about, dict) and isinstance(about.get("config"), dict):
            about["config"] = json.dumps(about["config"])
        torch.save({"model": state} | tree, path)
        tried(lambda: uses[use](str(path)))

    changes = changed_tree(whole, json_values())
    return st.tuples(changes, st.integers(0, len(uses) - 1)), call


USES = {
    "checkpoint.pth": read_checkpoint,
    "clip.pt": lambda path: read_clip_weights(path, confirmed_sha256=sha256(path)),
    "in.pth": lambda path: convert_file(path, path.with_name("out.pth")),
}


@target
def checkpoint_files(space: Space) -> Target:
    """Checkpoints and TorchScript archives: changed files, and changed pickles in whole ones."""
    whole = save_tiny(space.cfg, space.folder / "whole")
    archive = whole.with_name("archive.pt")
    save_archive(random_clip(), archive)
    files = {path: path.read_bytes() for path in (whole, archive)}
    pickles = {path: pickled(path) for path in files}
    inputs = st.sampled_from(sorted(files)).flatmap(
        lambda path: st.one_of(
            st.tuples(st.just(path), st.just(""), changed_bytes(files[path])),
            st.tuples(st.just(path), st.just("/data.pkl"), changed_bytes(pickles[path])),
        )
    )

    def call(drawn: tuple[str, tuple[Path, str, bytes]]) -> None:
        use, (path, record, content) = drawn
        if record:
            content = rezipped(path, record, content)
        path = space.write(use, content)
        tried(lambda: USES[use](path))

    return st.tuples(st.sampled_from(sorted(USES)), inputs), call


def pickled(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("/data.pkl")))


@target
def safetensors_files(space: Space) -> Target:
    """Changed files, and changed headers with a length that fits."""
    whole = save({"visual.class_embedding": torch.zeros(3), "b": torch.ones(2, 5)}, {"a": "b"})
    header, data = safetensors_header(whole)
    contents = st.one_of(
        changed_bytes(whole, head=16),
        changed_tree(header, json_values(("dtype", "shape", "data_offsets"))),
    )
    inputs = st.tuples(contents, st.sampled_from(sorted(USES)))

    def call(drawn: tuple[Any, str]) -> None:
        content, use = drawn
        if not isinstance(content, bytes):
            text = json.dumps(content).encode()
            content = len(text).to_bytes(8, "little") + text + data
        path = space.write("changed.safetensors", content)
        tried(lambda: USES[use](path))

    return inputs, call
