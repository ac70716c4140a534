"""Files of others into files of ours: mmseg checkpoints, CLIP weights, full copies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from tagclip.checkpoint.checkpointer import TagCLIPCheckpointer, load_trained
from tagclip.checkpoint.conversion.clip import (
    OTHER_SOURCE,
    check_suffix,
    compare_clip,
    convert_clip,
    summary,
    write_frozen_clip,
)
from tagclip.checkpoint.conversion.mmseg import Conversion, convert_official, is_official
from tagclip.checkpoint.folder import serialised
from tagclip.checkpoint.metadata import FORMAT, checkpoint_metadata
from tagclip.checkpoint.reading import read_dict
from tagclip.data.protocol import Protocol
from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.clip import CLIPSource
from tagclip.modeling.clip.weights import file_sha256, find_weight_file, weights_sha256
from tagclip.structures.provenance import Provenance
from tagclip.utils.files import write_atomic
from tagclip.utils.state_dict import STATE_KEYS, check_finite, check_floating, unwrap
from tagclip.utils.text import json_text
from tagclip.utils.untrusted import load_yaml

__all__ = ["convert_file"]

# The released code in this library's keys, as far as no tensor tells (docs/method.md).
_RELEASED = {"POS_EMBED_RESIZE": "bilinear", "DOUBLE_CLS_EMBED": True}


def convert_file(
    source: str | Path,
    target: str | Path,
    *,
    cfg: CfgNode | None = None,
    clip_target: str | Path = "",
    full: bool = False,
    sha256: str = "",
) -> list[str]:
    """Convert a checkpoint or CLIP weights and say what was kept, dropped and recorded.

    Args:
        source: an mmseg checkpoint of TagCLIP or ZegCLIP (``.pth``), a checkpoint of ours, or what
            `read_clip_weights` reads.
        target: ``.pth`` for a checkpoint, ``.safetensors`` or ``.pt`` for CLIP weights.
        cfg: builds the model that the checkpoint has to fit; its frozen CLIP weights have to be
            the ones that the checkpoint was trained with.
        clip_target: where the frozen CLIP weights of an mmseg checkpoint go, as open_clip's;
            ``.safetensors`` or ``.pt``. An open_clip model json is written beside it.
        full: store the frozen weights of the vision tower, too; needs ``cfg``.
        sha256: expected checksum of the source (hex), see `weights_sha256`; "" accepts any, except
            a TorchScript archive that is not one of OpenAI's.

    Returns:
        Lines of text.

    Raises:
        CheckpointError: a file is missing, damaged, unsafe or does not fit.
        ConfigError: the arguments do not go together.
    """
    source, target = Path(source), Path(target)
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError(f"{target}: found the same file for IN and OUT, expected another OUT")
    # What is wrong with a checkpoint that is no file, its reader says.
    if sha256 and (source.suffix != ".pth" or os.path.isfile(source)):
        _check_sha256(source, sha256.lower())
    content = read_dict(source) if source.suffix == ".pth" else {}
    if "tagclip" not in content:
        state, unwrapped = unwrap(content, source)
        if is_official(state):
            check_floating(state, source)
            check_finite(state, source, "take an earlier checkpoint of the run")
            lines = _convert_official(source, target, state, content, cfg, clip_target, full)
            return [lines[0], f"unwrapped: {', '.join(unwrapped) or 'nothing'}", *lines[1:]]
        if not any(name.startswith("sem_seg_head.") for name in state):
            rest = {"config_file": cfg, "clip_out": clip_target, "full": full}
            _refuse("CLIP weights", "a checkpoint", **rest)
        return convert_clip(source, target, sha256)
    if not full:
        raise ConfigError(
            f"{source}: is a checkpoint of TagCLIP for Detectron2 already; add --full for a copy "
            "with the frozen weights"
        )
    kind = "a checkpoint of TagCLIP for Detectron2"
    _refuse(kind, "a checkpoint of mmseg", clip_out=clip_target)
    return _copy_full(source, target, content["tagclip"], cfg)


def _check_sha256(source: Path, expected: str) -> None:
    file = find_weight_file(source, OTHER_SOURCE)
    if (found := weights_sha256(file)) != expected:
        raise CheckpointError(
            f"{file}: sha256 is {found}, expected {expected:.80} (--sha256); the file is damaged "
            "or another one: get it again, or mend the option"
        )


def _refuse(kind: str, expected: str, **options: Any) -> None:
    for name, value in options.items():
        if value:
            raise ConfigError(
                f"--{name.replace('_', '-')}: found with {kind} as IN, expected {expected}; leave "
                "it out"
            )


def _convert_official(
    source: Path,
    target: Path,
    state: Mapping[str, Tensor],
    content: Mapping[str, Any],
    cfg: CfgNode | None,
    clip_target: str | Path,
    full: bool,
) -> list[str]:
    check_suffix(target, ".pth")
    conversion = convert_official(state, str(source))
    metadata = _official_metadata(source, content.get("meta") or {}, conversion)
    lines = [f"{source}: mmseg checkpoint of {conversion.kind}, LAYERS {conversion.layers}"]
    if clip_target:
        known = CLIPSource.from_config(cfg).config if cfg is not None else {}
        lines += write_frozen_clip(Path(clip_target), conversion.clip, known)
        metadata["clip_sha256"] = file_sha256(Path(clip_target))
    trained = conversion.trained
    if cfg is not None:
        trained, metadata = _fit(source, target, cfg, conversion, metadata, full)
    elif full:
        raise ConfigError("--full: needs --config-file, which says what the frozen weights are")
    write_atomic(target, serialised({"model": trained, "tagclip": metadata}))
    lines += summary(conversion.trained, conversion.sources)
    beside = (key for key, value in content.items() if not isinstance(value, Tensor))
    other = sorted({*map(str, beside)} - {*STATE_KEYS, "meta"})
    lines += [f"dropped: {key}, which belongs to the training run" for key in other]
    lines += [f"dropped: {name}, {why}" for name, why in sorted(conversion.dropped.items())]
    if not clip_target and conversion.clip:
        lines.append(
            f"dropped: {len(conversion.clip)} frozen tensors of CLIP, which MODEL.CLIP.PRETRAINED "
            "names; --clip-out writes them"
        )
    lines += _recorded(metadata)
    return [*lines, f"written: {target}, sha256 {file_sha256(target)}"]


def _recorded(metadata: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, value in metadata.items():
        if key == "config":
            config = load_yaml(value)
            # A whole config is as long as its file.
            value = "the whole" if "SOLVER" in config else json_text(config)
        elif key == "provenance":
            value = Provenance.from_json(value).history
        elif isinstance(value, list):
            value = f"{len(value)} names"
        elif isinstance(value, dict):
            value = ", ".join(f"{k} {len(v) if k == 'classes' else v}" for k, v in value.items())
        lines.append(f"recorded: {key}: {value}")
    return lines


def _official_metadata(source: Path, meta: Any, conversion: Conversion) -> dict[str, Any]:
    """What is known without a config; what is not known is not compared when it is loaded."""
    tokens = conversion.trained["backbone.prompts.tokens"]
    config = {
        "MODEL": {
            "CLIP": _RELEASED
            | {"PROMPT": {"NUM_TOKENS": tokens.shape[1], "DEPTH": tokens.shape[0]}},
            "TAGCLIP": {"LAYERS": conversion.layers, "FEATURE_SCALE": 1.0},
        }
    }
    iteration, classes = _run_of(source, meta)
    return {
        "format": FORMAT,
        "config": yaml.safe_dump(config),
        "quick_gelu": True,
        "trusty_target": conversion.trusty_target,
        "provenance": Provenance(is_complete=False).to_json(),
        "source": {
            "kind": conversion.kind,
            "file": source.name,
            "sha256": file_sha256(source),
            "iteration": iteration,
            "classes": classes,
        },
    }


def _run_of(source: Path, meta: Any) -> tuple[int | None, list[str]]:
    """Iteration and class names that mmcv stores with a checkpoint, or mmengine one level below."""
    dataset = meta.get("dataset_meta", {}) if isinstance(meta, Mapping) else meta
    if not isinstance(dataset, Mapping):
        raise CheckpointError(
            f"{source}: found a {type(dataset).__name__} as meta, expected values by name; save "
            "the model's state dict"
        )
    classes = meta.get("CLASSES") or dataset.get("classes") or ()
    if not isinstance(classes, (list, tuple)) or not all(isinstance(n, str) for n in classes):
        raise CheckpointError(
            f"{source}: found a {type(classes).__name__} as classes of meta, expected a list of "
            "names; save the model's state dict"
        )
    iteration = meta.get("iter")
    return iteration if isinstance(iteration, int) else None, list(classes)


def _fit(
    source: Path,
    target: Path,
    cfg: CfgNode,
    conversion: Conversion,
    metadata: dict[str, Any],
    full: bool,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load the converted tensors into the config's model; return what to store."""
    model = build_model(cfg)
    # The config says with which masks others have trained it, and nothing what was before.
    declared = replace(Protocol(cfg).stage(), fingerprint="", datasets=())
    model.provenance = Provenance((declared,), is_complete=False)
    own = checkpoint_metadata(cfg, model, target.parent)
    if conversion.clip:
        compare_clip(source, conversion.clip, CLIPSource.from_config(cfg))
    known = {key: metadata[key] for key in ("quick_gelu", "trusty_target", "source")}
    converted = {"model": conversion.trained, "tagclip": own | known}
    TagCLIPCheckpointer(model, metadata=own).load_content(source, converted)
    state = dict(conversion.trained)
    if full:
        state = dict(model.state_dict()) | state
    return state, own | known


def _copy_full(
    source: Path, target: Path, metadata: dict[str, Any], cfg: CfgNode | None
) -> list[str]:
    check_suffix(target, ".pth")
    if cfg is None:
        raise ConfigError("--full: needs --config-file, which says what the frozen weights are")
    model = load_trained(cfg, str(source), strict=True)
    state, own = dict(model.state_dict()), checkpoint_metadata(cfg, model, target.parent)
    files = {key: own[key] for key in ("config", "vocabularies", "clip_json", "clip_merges")}
    files["provenance"] = model.provenance.to_json()
    write_atomic(target, serialised({"model": state, "tagclip": metadata | files}))
    return [
        f"{source}: checkpoint of TagCLIP for Detectron2",
        f"trained on masks: {model.provenance.history}",
        *summary(state),
        "dropped: state of the training run (optimizer, iteration)",
        f"written: {target}, sha256 {file_sha256(target)}",
    ]
