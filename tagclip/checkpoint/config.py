"""The config that travels in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from tagclip.checkpoint.reading import read_checkpoint
from tagclip.config.loading import build_config, resolve_paths
from tagclip.errors import CheckpointError
from tagclip.utils.untrusted import load_yaml

__all__ = ["checkpoint_config"]


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
    text = metadata.get("config") if isinstance(metadata, dict) else None
    try:
        tree = load_yaml(text) if isinstance(text, str) else None
    except ValueError:
        tree = None
    if not isinstance(tree, dict) or not isinstance(tree.setdefault("MODEL", {}), dict):
        raise CheckpointError(
            f"{path}: found no config in it, expected a checkpoint of tools/train_net.py; load "
            "the weights with a config of their own (--config-file, MODEL.WEIGHTS)"
        )
    tree = resolve_paths(tree, Path(path).resolve().parent)
    tree["MODEL"]["WEIGHTS"] = str(path)
    return build_config([(path, tree)], opts)
