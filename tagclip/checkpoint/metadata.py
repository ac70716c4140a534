"""What a checkpoint says about itself: fingerprints and config, and how two of them differ."""

from __future__ import annotations

import hashlib
import logging
import os
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from io import BytesIO
from pathlib import Path
from types import NoneType
from typing import Any, get_origin

import yaml
from detectron2.config import CfgNode
from torch import nn

from tagclip.checkpoint.pretrained_folder import is_of_folder
from tagclip.checkpoint.reading import find_weights, read_checkpoint
from tagclip.config.loading import build_config, check_overrides, resolve_paths
from tagclip.data.protocol import Protocol
from tagclip.errors import CheckpointError
from tagclip.modeling.clip import CLIPSource, resolve_pixels
from tagclip.modeling.clip.config import LOCAL, canonical_name, model_options
from tagclip.modeling.clip.source import MERGES_BYTES
from tagclip.projects import same_project_file
from tagclip.structures.provenance import Provenance, Stage
from tagclip.utils.text import json_text, listed, one_line, shortened
from tagclip.utils.untrusted import load_yaml, read_gzip

__all__ = [
    "changed_keys",
    "changes_weights",
    "check_metadata",
    "checkpoint_config",
    "checkpoint_metadata",
    "metadata_differences",
    "saved_provenance",
]

logger = logging.getLogger(__name__)

FORMAT = 1
# Safe, and several times as fast where PyYAML has its C part.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
# Fingerprints that must agree, and what mends a difference.
_FINGERPRINTS = {
    "format": "use the version of TagCLIP that wrote it",
    "clip_sha256": "MODEL.CLIP.PRETRAINED",
    "clip_text_sha256": "MODEL.CLIP.TOKENIZER",
    "quick_gelu": "MODEL.CLIP.NAME",
    "trusty_target": "MODEL.TAGCLIP.TRUSTY.TARGET",
}
_MODEL = "MODEL.CLIP.NAME"
# What the tensors compute depends on these keys, too, and no shape tells.
_FUNCTION_KEYS = (
    "INPUT.FORMAT",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.CLIP.POS_EMBED_RESIZE",
    "MODEL.CLIP.DOUBLE_CLS_EMBED",
    "MODEL.CLIP.LAST_BLOCK",
    "MODEL.TAGCLIP.NUM_HEADS",
    "MODEL.TAGCLIP.FEATURE_SCALE",
)
# Types of what is compared; None stands for what is not known.
_TYPES = {
    "format": int,
    "config": str,
    "clip_sha256": str,
    "clip_text_sha256": str,
    "quick_gelu": bool,
    "clip_pixel_statistics": str,
    "trusty_target": str,
    "classes": list[str],
    "seen_classes": list[str],
    "vocabularies": dict[str, str],
    "places": dict[str, str],
    "clip_json": str,
    "clip_merges": str,
    "vocabulary_fingerprint": str,
    "training_files": str,
    "training_contents": str,
    "label_colors": str,
    "processes": int,
    "resumed": list[str],
    "seed": int,
}
# Folders that are made anew wherever they are missing.
_CACHES = ("CACHE_DIR", "TEXT_CACHE")
_NAMES = {list[str]: "list of names", dict[str, str]: "dict of texts by name"}
# A resumed run is another run if keys change that begin with one of the first, but for the others:
# these change no weight, or the content of the files that they name is compared.
_RUN_KEYS = ("DATASETS.", "INPUT.", "MODEL.", "SEED", "SOLVER.")
_FREE_KEYS = (
    "DATASETS.TEST",
    "INPUT.MAX_PIXELS",
    "INPUT.MAX_SIZE_TEST",
    "INPUT.MIN_SIZE_TEST",
    "MODEL.BACKBONE.CHECKPOINT",
    "MODEL.CLIP.CACHE_DIR",
    "MODEL.CLIP.NAME",
    "MODEL.CLIP.PRETRAINED",
    "MODEL.CLIP.SHA256",
    "MODEL.CLIP.TEXT_",
    "MODEL.CLIP.TOKENIZER",
    "MODEL.COMPILE",
    "MODEL.DEVICE",
    "MODEL.TAGCLIP.LOSS.WORKSPACE_MIB",
    "MODEL.TAGCLIP.TEST.",
    "SOLVER.CHECKPOINT_PERIOD",
)
# What a run may find changed although no key says so, as the files were edited.
_CONTENTS = {
    "vocabulary_fingerprint": "the class list (its names, ids or prompts)",
    "training_files": "the training images and label files (their names, number or order)",
    "training_contents": "the training labels, or an image (their contents)",
    "label_colors": "the colours of the class list, by which label files may be read",
}
_LISTED = 12


def checkpoint_metadata(cfg: CfgNode, model: nn.Module, folder: str | Path = "") -> dict[str, Any]:
    """Describe a model so that it can be rebuilt and compared: numbers and text only.

    Args:
        cfg: the model's config.
        model: `TagCLIP`, not wrapped.
        folder: of the checkpoint, to which absolute paths become relative; "" is ``OUTPUT_DIR``.

    Returns:
        ``format``, ``config`` (yaml text, with the numbers of `resolve_pixels`), ``clip_sha256``,
        ``clip_text_sha256`` (of a tokenizer of transformers, "" of CLIP's own), ``quick_gelu``,
        ``clip_pixel_statistics`` (json text, None if unknown), ``trusty_target`` (None without a
        token), ``classes`` (names that training asks for), ``seen_classes`` (those of them with
        labels), ``vocabulary_fingerprint``, ``seed`` and ``provenance`` (a training adds
        ``training_files``, of `files_sha256`, ``label_colors``, of `Vocabulary.color_fingerprint`,
        and ``processes``, their number; one that was resumed with other keys or data ``resumed``,
        a text for each time; one that fits a gate
        ``training_contents``, of `contents_sha256`); the contents of files that building the model
        reads: ``vocabularies`` (dataset -> json), ``clip_json`` and ``clip_merges`` (base64; both
        "" for a model of open_clip); and ``places`` (key -> sha256 of its value with absolute
        paths, where there are any).

    Raises:
        TagCLIPError: such a file is missing.
    """
    cfg = resolve_pixels(cfg).clone()
    cfg.defrost()
    clip_keys = cfg.MODEL.CLIP
    name = canonical_name(clip_keys.NAME)
    if name.endswith(".json"):
        clip_keys.NAME = _absolute(name)
    if clip_keys.TOKENIZER:
        clip_keys.TOKENIZER = _absolute(clip_keys.TOKENIZER)
    if CLIPSource.from_config(cfg).is_local:
        clip_keys.PRETRAINED = _absolute(clip_keys.PRETRAINED.removeprefix(LOCAL))
    # The backbone's old name says it without the key.
    clip_keys.LAST_BLOCK = getattr(model.backbone, "last_block", clip_keys.LAST_BLOCK)
    config = _portable(cfg, os.path.abspath(folder or cfg.OUTPUT_DIR))
    config["OUTPUT_DIR"], config["MODEL"]["WEIGHTS"] = "./output", ""
    # Their contents are entries of their own.
    del config["DATASETS"]["VOCABULARIES"], config["MODEL"]["CLIP"]["JSON"]
    del config["MODEL"]["CLIP"]["MERGES"]
    clip = CLIPSource.from_config(cfg)
    clip_json, clip_merges = clip.files_by_content()
    vocabulary = model.train_vocabulary
    flags = zip(vocabulary.names, vocabulary.seen_mask, strict=True)
    pixels = model.backbone.pixel_statistics
    return {
        "format": FORMAT,
        "config": yaml.dump(config, Dumper=_DUMPER),
        "clip_sha256": model.backbone.weights_sha256,
        "clip_text_sha256": model.text_bank.source.text_sha256,
        "quick_gelu": clip.quick_gelu,
        "clip_pixel_statistics": None if pixels is None else json_text(pixels),
        "trusty_target": model.trusty_target,
        "classes": list(vocabulary.names),
        "seen_classes": [name for name, seen in flags if seen],
        "vocabulary_fingerprint": vocabulary.fingerprint,
        "seed": cfg.SEED,
        "provenance": model.provenance.to_json(),
        "vocabularies": Protocol(cfg).class_list_texts(),
        "clip_json": clip_json,
        "clip_merges": clip_merges,
        "places": _places(cfg, config),
    }


def _places(cfg: CfgNode, portable: dict[str, Any]) -> dict[str, str]:
    """Key -> sha256 (hex) of what a config says there, where the portable one says another path."""
    texts, own = ({k: json_text(v) for k, v in _leaves(tree)} for tree in (cfg, portable))
    return {
        key: hashlib.sha256(texts[key].encode()).hexdigest()
        for key, text in own.items()
        if text != texts[key] and key not in ("OUTPUT_DIR", "MODEL.WEIGHTS")
    }


def _absolute(path: str) -> str:
    """A path that does not depend on where the command is run; ~ and $NAME stay."""
    return path if path.startswith(("~", "$")) else os.path.abspath(path)


def checkpoint_config(path: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """Build the config that a checkpoint was trained with; MODEL.WEIGHTS is the checkpoint.

    It needs none of the files of its training but CLIP's weights and a tokenizer of transformers:
    class lists and CLIP's model json come with it.

    Args:
        path: a checkpoint of `TagCLIPCheckpointer`, a folder or a model of the hub, see
            `find_weights`. Relative paths in its config mean files below its folder, where it was
            written. CLIP's files that are not there, but in this checkout's ``projects``, are taken
            from these.
        opts: alternating keys and values that go before those of the checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, holds no config, or was moved away
            from CLIP's weights.
        ConfigError: a key is unknown (in `opts`, or to this version), or a value is wrong.
    """
    check_overrides(opts)
    found = find_weights(path)
    path = path if Path(path) == found else found
    metadata = read_checkpoint(path).get("tagclip")
    metadata = metadata if isinstance(metadata, dict) else {}
    check_metadata(metadata, path)
    tree = _config_tree(metadata.get("config"))
    if tree is None:
        raise CheckpointError(
            f"{path}: found no config in it, expected a checkpoint of tagclip train; load "
            "the weights with a config of their own (--config-file, MODEL.WEIGHTS)"
        )
    stored = dict(_section(path, tree, "MODEL", "CLIP"))
    # The cache of the hub holds links, whose targets have no folder of their own.
    folder = found.absolute() if is_of_folder(found) else found.resolve()
    tree = resolve_paths(tree, folder.parent)
    _section(path, tree, "MODEL")["WEIGHTS"] = str(path)
    lists = (metadata.get("vocabularies") or {}).items()
    _section(path, tree, "DATASETS")["VOCABULARIES"] = [{"dataset": n, "json": t} for n, t in lists]
    clip = _section(path, tree, "MODEL", "CLIP")
    if is_of_folder(found):
        # Whoever hands a model on does not choose where others' machines write.
        clip |= dict.fromkeys(_CACHES, "")
        stored |= dict.fromkeys(_CACHES, "")
    moved = [key for key, place in stored.items() if isinstance(place, str) and place != clip[key]]
    if "MODEL.CLIP.NAME" not in opts[::2]:
        clip["JSON"] = metadata.get("clip_json") or ""
        clip["MERGES"] = metadata.get("clip_merges") or ""
    for key in moved:
        if key in _CACHES:
            clip[key] = clip[key] if os.path.isdir(clip[key]) else ""
        elif f"MODEL.CLIP.{key}" not in opts[::2] and not (key == "NAME" and clip["JSON"]):
            clip[key] = _found_file(path, key, stored[key], clip[key], metadata.get("clip_sha256"))
    return build_config([(path, tree)], opts)


def _section(path: str | Path, tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A section of a checkpoint's config; a new one where there is none."""
    for key in keys:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise CheckpointError(
                f"{path}: found {key} {tree!r:.60} in its config, expected a section with keys; "
                "the file is damaged or was not written by tagclip train"
            )
    return tree


def _found_file(path: str | Path, key: str, stored: str, file: str, sha256: str | None) -> str:
    """Where one of CLIP's files is now.

    Args:
        path: the checkpoint.
        key: of MODEL.CLIP.
        stored: path relative to the folder in which the checkpoint was written.
        file: the same below the folder in which it is.
        sha256: of the weights, if known.

    Raises:
        CheckpointError: it is not there.
    """
    if os.path.exists(file):
        return file
    if here := same_project_file(file):
        logger.info("%s: found no %s beside it, taking %s", path, os.path.normpath(stored), here)
        return here
    known = f" with sha256 {sha256}" if key == "PRETRAINED" and sha256 else ""
    raise CheckpointError(
        f"{path}: was moved or copied: it was written in a folder from which CLIP's "
        f"{os.path.basename(file)}{known} is {stored}, found no such file here; set "
        f"MODEL.CLIP.{key} to where it is"
    )


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
        parts = (*value, *value.values()) if isinstance(value, dict) else value
        is_flat = not isinstance(value, (list, dict)) or all(isinstance(p, str) for p in parts)
        if not is_flat or not isinstance(value, (get_origin(kind) or kind, NoneType)):
            what = _NAMES.get(kind) or kind.__name__
            raise CheckpointError(
                f"{path}: found tagclip.{key} {value!r:.60}, expected a {what}; the file is "
                "damaged or was not written by tagclip train"
            )
    if _config_tree(saved.get("config") or "{}") is None:
        raise CheckpointError(
            f"{path}: found no config in it that can be read, expected the yaml text that "
            "tagclip train stores"
        )
    saved_provenance(saved, path)


def saved_provenance(saved: dict[str, Any], path: str | Path) -> Provenance:
    """What a checkpoint says about the masks that trained it.

    Args:
        saved: its metadata. Without a provenance, its own classes with labels are what is known.
        path: its file, for the message.

    Raises:
        CheckpointError: the provenance is none.
    """
    provenance = Provenance(is_complete=False)
    if saved.get("provenance") is not None:
        try:
            provenance = Provenance.from_json(saved["provenance"])
        except ValueError as error:
            raise CheckpointError(
                f"{path}: found no readable tagclip.provenance ({error}), expected that of "
                "tagclip train; the file is damaged or was written by a newer version"
            ) from error
    # A training loop of somebody's own may have written the classes and no stage of its own.
    known = {name for stage in provenance.stages for names in stage.masks for name in names}
    seen = [name for name in saved.get("seen_classes") or () if name not in known]
    if not seen:
        return provenance
    config = _config_tree(saved.get("config")) or {}
    split, setting = (
        reduce(_child, ("DATASETS", "ZERO_SHOT", key), config) for key in ("SPLIT", "SETTING")
    )
    stage = Stage(
        setting=str(setting or "unknown"),
        split=str(split or ""),
        masks=tuple((name,) for name in seen),
    )
    return Provenance((*provenance.stages, stage), is_complete=False)


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
    rows += _model_rows(saved, own)
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


def changed_keys(saved: dict[str, Any], own: dict[str, Any]) -> tuple[str, str]:
    """List the config keys of a resumed run, and its data, that are not as they were.

    Args:
        saved: metadata of the checkpoint. What it lacks, as one of earlier code may, counts as
            unchanged.
        own: metadata of the run.

    Returns:
        Text of those that make it another run, and of those that change no weight; "" for none.
    """
    then, now = (dict(_leaves(load_yaml(data.get("config") or "{}"))) for data in (saved, own))
    # Paths are those from OUTPUT_DIR: where that was moved, the same files have others.
    before, today = (data.get("places") or {} for data in (saved, own))
    same = {key for key, place in today.items() if before.get(key) == place}
    changed = [key for key in now if key in then and now[key] != then[key] and key not in same]
    groups = ([], [])
    for key, what in _CONTENTS.items():
        if saved.get(key) and own.get(key) and saved[key] != own[key]:
            groups[0].append(what)
    then_many, now_many = saved.get("processes"), own.get("processes")
    # Each draws masks of its own, and keeps batches of its own for a convolutional trusty head.
    if then_many and now_many and then_many != now_many:
        groups[0].append(f"{now_many} processes (were {then_many})")
    for key in changed:
        groups[not changes_weights(key)].append(
            f"{key} {_value(now[key])} (was {_value(then[key])})"
        )
    return tuple(listed(rows, _LISTED) for rows in groups)


def changes_weights(key: str) -> bool:
    """Whether a training with another value of a config key is another one."""
    return key.startswith(_RUN_KEYS) and not key.startswith(_FREE_KEYS)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(value: Any) -> str:
    return shortened(one_line(value) if value != "" else "empty", 80)


def _config_values(
    saved: dict[str, Any], own: dict[str, Any], keys: Iterable[str]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, saved value, own value); None stands for a key that is not there."""
    configs = [load_yaml(data.get("config") or "{}") for data in (saved, own)]
    for key in keys:
        found, expected = (reduce(_child, key.split("."), config) for config in configs)
        yield key, found, expected


def _model_rows(saved: dict[str, Any], own: dict[str, Any]) -> Iterator[tuple[str, Any, Any, str]]:
    """What differs in CLIP's model json and in the merges beside it, where both sides have them."""
    for name, read in (("clip_json", model_options), ("clip_merges", _merges_options)):
        texts = [data.get(name) or "" for data in (saved, own)]
        if not all(texts) or texts[0] == texts[1]:
            continue
        try:
            found, expected = map(read, texts)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            yield (
                name,
                f"none that can be read ({one_line(error):.60})",
                "that of the config",
                _MODEL,
            )
            continue
        for key in sorted(found.keys() | expected.keys()):
            yield f"{name} {key}", _value(found.get(key)), _value(expected.get(key)), _MODEL


def _merges_options(text: str) -> dict[str, str]:
    # The same merges may be packed otherwise.
    content = read_gzip(BytesIO(b64decode(text)), MERGES_BYTES)
    return {"sha256": hashlib.sha256(content).hexdigest()}


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
