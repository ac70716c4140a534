"""What tells trainings and their weights apart: a hash of the config, a checksum of the tensors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagclip.checkpoint.metadata import changes_weights
from tagclip.config.loading import build_config, resolve_paths
from tagclip.modeling.clip.config import canonical_name
from tagclip.utils.text import json_text
from tagclip.utils.untrusted import load_yaml

__all__ = ["config_hash", "stored_config_hash", "tensors_sha256", "training_record"]

# Keys that repetitions of one experiment differ in, here or on another machine, and contents of
# files that other keys name.
_NOT_HASHED = (
    "CONFIG_NAME",
    "DATALOADER.NUM_WORKERS",
    "DATASETS.VOCABULARIES",
    "DATASETS.ZERO_SHOT.ALLOW_TRAINED_UNSEEN",
    "MODEL.CLIP.CACHE_DIR",
    "MODEL.CLIP.JSON",
    "MODEL.CLIP.MERGES",
    "MODEL.CLIP.TEXT_CACHE",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "OUTPUT_DIR",
    "SEED",
    "SOLVER.ACCUMULATE",
    "TEST.SAVE_LOGITS",
    "TEST.SAVE_PREDICTIONS",
)
# Paths, also where they are relative, or other names.
_MAY_BE_PATHS = ("MODEL.CLIP.NAME", "MODEL.CLIP.PRETRAINED", "MODEL.CLIP.TOKENIZER")


def config_hash(cfg: Mapping[str, Any]) -> str:
    """12 hex digits, the same for runs whose configs differ in no more than the seed.

    Output folder, initial weights, device and workers do not count either, and of a path only its
    last part does: the same experiment has the same digits on every machine.
    """
    text = json_text(_hashed(cfg, ""), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def stored_config_hash(config: str, folder: Path) -> str:
    """`config_hash` of the config in a checkpoint, with the keys of the version that wrote it.

    Args:
        config: yaml text, see `checkpoint_metadata`.
        folder: of the checkpoint.
    """
    return config_hash(resolve_paths(load_yaml(config), folder))


def training_record(metadata: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """What a result says of the training of its weights, where a checkpoint tells.

    Args:
        metadata: see `checkpoint_metadata`.
        folder: of the checkpoint.

    Returns:
        ``training_files`` as there, and ``trained_config``: 12 hex digits, the same for trainings
        whose configs differ in no more than the seed and in what changes no weight, and that were
        resumed with the same changes or with none.
    """
    record = {}
    if config := metadata.get("config"):
        tree = _hashed(resolve_paths(load_yaml(config), folder), "")
        defaults = _hashed(build_config(()), "")
        # A key that the version of the training did not have yet is what it is by default.
        changed = _changed(tree, defaults, "")
        # Several configs had a part in it.
        if resumed := metadata.get("resumed"):
            changed["resumed"] = resumed
        text = json_text(changed, sort_keys=True)
        record["trained_config"] = hashlib.sha256(text.encode()).hexdigest()[:12]
    if files := metadata.get("training_files"):
        record["training_files"] = files
    return record


def _changed(tree: dict[str, Any], defaults: Any, prefix: str) -> dict[str, Any]:
    """Key -> value, of those that change weights and have not their default."""
    found = {}
    for name, value in tree.items():
        default = defaults.get(name) if isinstance(defaults, dict) else None
        if isinstance(value, dict):
            found |= _changed(value, default, f"{prefix}{name}.")
        # Of datasets their names are another key, and ``training_files`` says what is in them.
        elif name != "FOLDER_DATASETS" and value != default and changes_weights(f"{prefix}{name}"):
            found[f"{prefix}{name}"] = value
    return found


def _hashed(node: Any, key: str) -> Any:
    if isinstance(node, dict):
        paths = {name: f"{key}.{name}".lstrip(".") for name in node}
        return {n: _hashed(node[n], path) for n, path in paths.items() if path not in _NOT_HASHED}
    if isinstance(node, (list, tuple)):
        return [_hashed(value, key) for value in node]
    if isinstance(node, str) and (os.path.isabs(node) or key in _MAY_BE_PATHS):
        return Path(canonical_name(node) if key == "MODEL.CLIP.NAME" else node).name
    return node


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Checksum in hex of names, types, shapes and values, whatever file or device holds them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(content.numpy())
    return digest.hexdigest()
