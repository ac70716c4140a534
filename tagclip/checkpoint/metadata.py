"""What a checkpoint says about itself: fingerprints and config, and how two of them differ."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from torch import nn

from tagclip.checkpoint.reading import read_checkpoint
from tagclip.config.loading import build_config, resolve_paths
from tagclip.errors import CheckpointError
from tagclip.modeling.clip import CLIPSource
from tagclip.utils.untrusted import load_yaml

__all__ = [
    "changed_run_keys",
    "check_metadata",
    "checkpoint_config",
    "checkpoint_metadata",
    "metadata_differences",
]

FORMAT = 1
# Safe, and several times as fast where PyYAML has its C part.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
# Fingerprints that must agree, and what mends a difference.
_FINGERPRINTS = {
    "format": "use the version of TagCLIP that wrote it",
    "clip_sha256": "MODEL.CLIP.PRETRAINED",
    "quick_gelu": "MODEL.CLIP.NAME",
    "trusty_target": "MODEL.TAGCLIP.TRUSTY.TARGET",
}
# What the tensors compute depends on these keys, too, and no shape tells.
_FUNCTION_KEYS = (
    "INPUT.FORMAT",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.CLIP.POS_EMBED_RESIZE",
    "MODEL.CLIP.DOUBLE_CLS_EMBED",
    "MODEL.TAGCLIP.NUM_HEADS",
    "MODEL.TAGCLIP.FEATURE_SCALE",
)
# Types of what is compared; None stands for what is not known.
_TYPES = {
    "format": int,
    "config": str,
    "clip_sha256": str,
    "quick_gelu": bool,
    "clip_pixel_statistics": str,
    "trusty_target": str,
    "classes": list,
    "seen_classes": list,
    "vocabulary_fingerprint": str,
    "seed": int,
}
# A resumed run is another run if these change.
_RUN_KEYS = ("SOLVER.IMS_PER_BATCH", "SEED")


def checkpoint_metadata(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """Describe a model so that it can be rebuilt and compared: numbers and text only.

    Args:
        cfg: the model's config. Its absolute paths become relative to ``OUTPUT_DIR``, where
            checkpoints lie.
        model: `TagCLIP`, not wrapped.

    Returns:
        ``format``, ``config`` (yaml text), ``clip_sha256``, ``quick_gelu``,
        ``clip_pixel_statistics`` (json text, None if unknown), ``trusty_target`` (None without a
        token), ``classes`` (names that training asks for), ``seen_classes`` (those of them with
        labels), ``vocabulary_fingerprint`` and ``seed``.
    """
    config = _portable(cfg, os.path.abspath(cfg.OUTPUT_DIR))
    config["OUTPUT_DIR"], config["MODEL"]["WEIGHTS"] = "./output", ""
    vocabulary = model.train_vocabulary
    flags = zip(vocabulary.names, vocabulary.seen_mask, strict=True)
    pixels = model.backbone.pixel_statistics
    return {
        "format": FORMAT,
        "config": yaml.dump(config, Dumper=_DUMPER),
        "clip_sha256": model.backbone.weights_sha256,
        "quick_gelu": CLIPSource.from_config(cfg).quick_gelu,
        "clip_pixel_statistics": None if pixels is None else json.dumps(pixels),
        "trusty_target": model.trusty_target,
        "classes": list(vocabulary.names),
        "seen_classes": [name for name, seen in flags if seen],
        "vocabulary_fingerprint": vocabulary.fingerprint,
        "seed": cfg.SEED,
    }


def checkpoint_config(path: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """Build the config that a checkpoint was trained with; MODEL.WEIGHTS is the checkpoint.

    Args:
        path: a checkpoint of `TagCLIPCheckpointer`. Relative paths in its config mean files below
            its folder, where it was written.
        opts: alternating keys and values that go before those of the checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, or holds no config.
        ConfigError: a key is unknown (in `opts`, or to this version), or a value is wrong.
    """
    metadata = read_checkpoint(path).get("tagclip")
    tree = _config_tree(metadata.get("config") if isinstance(metadata, dict) else None)
    if tree is None or not isinstance(tree.setdefault("MODEL", {}), dict):
        raise CheckpointError(
            f"{path}: found no config in it, expected a checkpoint of tools/train_net.py; load "
            "the weights with a config of their own (--config-file, MODEL.WEIGHTS)"
        )
    tree = resolve_paths(tree, Path(path).resolve().parent)
    tree["MODEL"]["WEIGHTS"] = str(path)
    return build_config([(path, tree)], opts)


def check_metadata(saved: dict[str, Any], path: str | Path) -> None:
    """Refuse metadata that `checkpoint_metadata` cannot have written.

    Args:
        saved: metadata of a checkpoint; any of them may be missing.
        path: its file, for the message.

    Raises:
        CheckpointError: an entry has another type, or the config is no plain yaml.
    """
    for key, kind in _TYPES.items():
        value = saved.get(key)
        names = value if kind is list and isinstance(value, list) else ()
        if not isinstance(value, (kind, type(None))) or any(not isinstance(n, str) for n in names):
            what = "list of names" if kind is list else kind.__name__
            raise CheckpointError(
                f"{path}: found tagclip.{key} {value!r:.60}, expected a {what}; the file is "
                "damaged or was not written by tools/train_net.py"
            )
    if _config_tree(saved.get("config") or "{}") is None:
        raise CheckpointError(
            f"{path}: found no config in it that can be read, expected the yaml text that "
            "tools/train_net.py stores"
        )


def _config_tree(text: Any) -> dict[str, Any] | None:
    """The config in metadata; None if it is no text, or not the yaml of one."""
    try:
        tree = load_yaml(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return tree if isinstance(tree, dict) else None


def metadata_differences(
    saved: dict[str, Any], own: dict[str, Any], *, compare_classes: bool
) -> list[str]:
    """List what makes a checkpoint unfit although its tensors may have the right sizes.

    Args:
        saved: metadata of the checkpoint; what one side lacks is not compared.
        own: metadata of the model that is to load it.
        compare_classes: whether the classes with labels must be the same. In an evaluation they
            decide what counts as seen, so that another split would report trained classes as
            unseen; a new training may have others.

    Returns:
        One text per difference: what, found, expected, and the key that mends it.
    """
    rows = [(key, saved.get(key), own.get(key), mend) for key, mend in _FINGERPRINTS.items()]
    rows += [(*row, row[0]) for row in _config_values(saved, own, _FUNCTION_KEYS)]
    differences = [
        f"{key}: found {found}, expected {expected} ({mend})"
        for key, found, expected, mend in rows
        if None not in (found, expected) and found != expected
    ]
    found, expected = (set(data.get("seen_classes") or ()) for data in (saved, own))
    if compare_classes and found and expected and found != expected:
        differences.append(
            f"classes with labels in training: found {len(found)}, expected {len(expected)}, "
            f"such as {sorted(found ^ expected)[0]!r} in one only (DATASETS.TRAIN, "
            "DATASETS.ZERO_SHOT.SPLIT)"
        )
    return differences


def changed_run_keys(saved: dict[str, Any], own: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """List the keys that make a resumed run another run, as (key, then, now)."""
    return [
        row for row in _config_values(saved, own, _RUN_KEYS) if None not in row and row[1] != row[2]
    ]


def _config_values(
    saved: dict[str, Any], own: dict[str, Any], keys: Iterable[str]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, saved value, own value); None stands for a key that is not there."""
    configs = [load_yaml(data.get("config") or "{}") for data in (saved, own)]
    for key in keys:
        found, expected = (reduce(_child, key.split("."), config) for config in configs)
        yield key, found, expected


def _child(node: Any, part: str) -> Any:
    return node.get(part) if isinstance(node, dict) else None


def _portable(node: Any, folder: str) -> Any:
    """Plain dicts and lists, with absolute paths relative to a folder, after a leading ``./``."""
    if isinstance(node, dict):
        return {key: _portable(value, folder) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_portable(value, folder) for value in node]
    if isinstance(node, str) and os.path.isabs(node):
        return os.path.join(".", os.path.relpath(node, folder))
    return node
