"""What a folder holds that hands a model on; made as a whole before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from safetensors.torch import save
from torch import nn

import tagclip
from tagclip.checkpoint import checkpoint_metadata, read_checkpoint, trained_state
from tagclip.checkpoint.identity import stored_config_hash, tensors_sha256
from tagclip.checkpoint.pretrained_folder import (
    ARCHITECTURE,
    CARD,
    CONFIG,
    DESCRIPTION,
    FORMAT,
    VOCABULARY,
    WEIGHTS,
    config_value,
    is_of_folder,
    read_description,
)
from tagclip.data.protocol import Protocol
from tagclip.errors import CheckpointError
from tagclip.modeling.clip import CLIPSource
from tagclip.modeling.clip.config import CONFIG_FILE
from tagclip.modeling.clip.weights import file_sha256
from tagclip.modeling.heads.none_of_these import describe_background
from tagclip.pretrained.card import model_card
from tagclip.pretrained.clip_files import clip_files, clip_keys
from tagclip.pretrained.results import TrainedWeights, results_beside, results_of
from tagclip.utils.text import json_text
from tagclip.utils.untrusted import load_json, load_yaml

__all__ = ["pretrained_content"]


def pretrained_content(
    cfg: CfgNode,
    model: nn.Module,
    name: str,
    *,
    with_clip: bool = False,
    results: Iterable[str | Path] = (),
    license: str = "",
) -> dict[str, bytes | Path]:
    """Describe a trained model for others, see `tagclip.checkpoint.pretrained_folder`.

    Paths of datasets on this machine are left out of its config.

    Args:
        cfg: the config of the model, with MODEL.WEIGHTS.
        model: `TagCLIP` with what was trained.
        name: what the card calls it, ``ORGANISATION/NAME`` or the name of the folder.
        with_clip: see `clip_files`.
        results: metrics.json files of its evaluations; none: those below the folder of the
            checkpoint, or in the card of the folder that it comes from.
        license: identifier of the hub for the trained tensors.

    Returns:
        Name -> content, or the file to copy.

    Raises:
        CheckpointError: CLIP cannot be named or copied, results are of another model, or nothing
            was trained.
    """
    state = {key: value.cpu().contiguous() for key, value in trained_state(model).items()}
    if not state:
        raise CheckpointError(
            f"{cfg.CONFIG_NAME or 'config'}: found nothing that was trained, expected a model with "
            "trained tensors; such a model needs no folder: hand its config on"
        )
    tensors = save(state, {"format": "pt"})
    sha256 = hashlib.sha256(tensors).hexdigest()
    metadata = checkpoint_metadata(cfg, model)
    protocol, source = Protocol(cfg), CLIPSource.from_config(cfg)
    weights = _trained_weights(cfg.MODEL.WEIGHTS, metadata, tensors_sha256(state), sha256)
    shown = _results(cfg.MODEL.WEIGHTS, results, weights)
    files = clip_files(source, with_clip)
    keys = clip_keys(source, files)
    config = load_yaml(metadata.pop("config"))
    config["MODEL"]["WEIGHTS"] = f"./{WEIGHTS}"
    config["MODEL"]["CLIP"] |= keys
    config["DATASETS"]["FOLDER_DATASETS"] = []
    # They tell of this machine.
    metadata["places"] = {}
    # They are files of the folder.
    metadata["clip_json"] = metadata["clip_merges"] = ""
    pretrained = keys["PRETRAINED"].removeprefix("./")
    # Of a folder its name, as the json in it is always called the same.
    file = Path(source.name.removesuffix(f"/{CONFIG_FILE}"))
    clip = {
        "name": file.stem if keys["NAME"] != source.name else source.name,
        "pretrained": Path(pretrained).name if pretrained in files else pretrained,
        "sha256": metadata.pop("clip_sha256"),
        "file": pretrained if pretrained in files else None,
    }
    train = cfg.DATASETS.TRAIN[0]
    class_list = _vocabulary(metadata["vocabularies"][train], protocol).encode()
    description = {
        "format": FORMAT,
        "version": tagclip.__version__,
        "architecture": {key: config_value(config, key) for key in ARCHITECTURE},
        "weights_sha256": sha256,
        "vocabulary_sha256": hashlib.sha256(class_list).hexdigest(),
        "clip": clip,
        "files": sorted(files),
        "results": shown,
        "metadata": metadata,
    }
    card = model_card(
        name=name,
        protocol=protocol.summary,
        vocabulary=protocol.asked(train),
        provenance=model.provenance,
        clip=clip,
        results=shown,
        background=describe_background(cfg.MODEL.TAGCLIP.TEST),
        license=license,
    )
    texts = {
        CONFIG: yaml.safe_dump(config),
        DESCRIPTION: json_text(description, indent=1) + "\n",
        CARD: card,
    }
    written = {key: text.encode() for key, text in texts.items()}
    return written | files | {VOCABULARY: class_list, WEIGHTS: tensors}


def _vocabulary(text: str, protocol: Protocol) -> str:
    """The class list of the training, whose default split is that of the training."""
    tree, full = load_json(text), protocol.full
    if full.split:
        lists = {"seen": protocol.full.restrict("seen").names, "unseen": full.unseen_names}
        tree["splits"] = tree.get("splits", {}) | {full.split: lists}
        tree["default_split"] = full.split
    return json_text(tree, indent=1, ensure_ascii=False) + "\n"


def _trained_weights(
    path: str, metadata: dict[str, Any], tensors: str, sha256: str
) -> TrainedWeights:
    """What tells results of the weights from others.

    Args:
        path: where they come from; "" or no file is possible.
        metadata: of the model.
        tensors: their `tensors_sha256`.
        sha256: of the file that will hold them.
    """
    file, iterations, digits = Path(path), None, None
    if not file.is_file():
        return TrainedWeights(metadata, tensors, (sha256,))
    checkpoint = read_checkpoint(file)
    # One of a training, whose config is as it was.
    if isinstance(iteration := checkpoint.get("iteration"), int):
        iterations = iteration + 1
        if config := (checkpoint.get("tagclip") or {}).get("config"):
            digits = stored_config_hash(config, file.parent)
    files = (file_sha256(file), sha256)
    return TrainedWeights(metadata, tensors, files, iterations, digits)


def _results(
    path: str, files: Iterable[str | Path], weights: TrainedWeights
) -> list[dict[str, Any]]:
    file, files = Path(path), list(files)
    if files:
        return results_of(files, weights)
    if file.is_file() and is_of_folder(file):
        return read_description(file.parent)["results"]
    return results_beside(file.parent, weights)
