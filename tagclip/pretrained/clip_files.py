"""CLIP in the folder of a model that is handed on: by its public name, or as files."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tagclip.errors import CheckpointError
from tagclip.modeling.clip import CLIPSource
from tagclip.modeling.clip.config import merges_file

__all__ = ["clip_files", "clip_keys"]

_FOLDER = "clip"
_TOKENIZER = f"{_FOLDER}/tokenizer"
# What says in which of several files a tensor is.
_INDEX = ".index.json"
# Beside weights, they tell activation and pixel statistics.
_BESIDE = ("open_clip_config.json", "config.json", "preprocessor_config.json")


def clip_files(clip: CLIPSource, with_clip: bool) -> dict[str, bytes | Path]:
    """Return what of CLIP goes into a folder.

    Args:
        clip: of the model.
        with_clip: also its weights, which a file of this machine needs, and a tokenizer of
            transformers.

    Returns:
        Name -> content, or the file to copy. A model json of this machine is always among them.

    Raises:
        CheckpointError: weights or tokenizer are files of this machine and are not to be copied, or
            the weights are in several files.
    """
    keys = {
        "PRETRAINED": clip.pretrained if clip.is_local else "",
        "TOKENIZER": clip.local_tokenizer,
    }
    for key, found in keys.items():
        if found and not with_clip:
            raise CheckpointError(
                f"MODEL.CLIP.{key}: found {found}, a file of this machine, expected a name "
                "that others can load; copy it into the folder with --with-clip (with_clip=True)"
            )
    files: dict[str, bytes | Path] = dict(_model_json(clip))
    if not with_clip:
        return files
    files |= {f"{_TOKENIZER}/{path.name}": path for path in clip.text_files}
    if clip.path is None:
        return files
    path = clip.path
    if path.name.endswith(_INDEX):
        raise CheckpointError(
            f"{path}: CLIP's weights are in several files, expected one to copy; convert them "
            "with tagclip convert FOLDER clip.safetensors"
        )
    beside = {f"{_FOLDER}/{name}": path.with_name(name) for name in _BESIDE}
    return {name: p for name, p in beside.items() if p.is_file()} | files | {_inside(path): path}


def _model_json(clip: CLIPSource) -> Iterator[tuple[str, bytes]]:
    text, merges = clip.files_by_content()
    if text:
        yield _inside(clip.name), text.encode()
    if merges:
        yield _inside(merges_file(clip.name, clip.config)), b64decode(merges)


def clip_keys(clip: CLIPSource, files: dict[str, Any]) -> dict[str, str]:
    """Return the keys of MODEL.CLIP that name CLIP in the folder.

    Args:
        clip: of the model.
        files: what `clip_files` returned.
    """
    name, pretrained = clip.name, clip.pretrained
    if _inside(name) in files:
        name = f"./{_inside(name)}"
    if clip.path is not None and _inside(clip.path) in files:
        pretrained = f"./{_inside(clip.path)}"
    has_tokenizer = any(file.startswith(f"{_TOKENIZER}/") for file in files)
    return {
        "NAME": name,
        "PRETRAINED": pretrained,
        "TOKENIZER": f"./{_TOKENIZER}" if has_tokenizer else "",
        "CACHE_DIR": "",
        "TEXT_CACHE": "",
    }


def _inside(path: str | Path) -> str:
    return f"{_FOLDER}/{Path(path).name}"
