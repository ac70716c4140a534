"""Reading CLIP weights from a file or a Hugging Face-layout folder; nothing in it is executed."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagclip.errors import CheckpointError
from tagclip.modeling.clip.layouts import foreign_layout, is_constant, is_openai, to_open_clip
from tagclip.modeling.clip.torchscript_archive import is_torchscript, read_torchscript_tensors
from tagclip.utils.state_dict import check_filled, check_finite, check_floating, unwrap
from tagclip.utils.text import error_text, one_line
from tagclip.utils.torch_file import ForeignPickleError, load_torch_file
from tagclip.utils.untrusted import UnsafeFileError, check_content, load_json

__all__ = [
    "CLIPWeights",
    "file_sha256",
    "find_weight_file",
    "read_clip_weights",
    "weights_sha256",
]

logger = logging.getLogger(__name__)

# The config of a Hugging Face folder and the weight files beside it: open_clip's, transformers'.
_FOLDERS = (
    ("open_clip_config.json", ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
                               "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth")),
    ("config.json", ("model.safetensors", "pytorch_model.bin")),
)  # fmt: skip
# Ends the name of a json that says in which of several files each tensor is.
_INDEX = ".index.json"
_LISTED = 5
_REMEDY = "name another file as MODEL.CLIP.PRETRAINED, or an open_clip tag"
# How open_clip's names of an image tower begin, and those of a text tower.
_VISION, _TEXT = "visual.", ("token_embedding.", "text.")


@dataclass(frozen=True)
class CLIPWeights:
    """A CLIP model's tensors and what is known of its activation.

    Attributes:
        state: open_clip name -> float32 tensor on the CPU.
        quick_gelu: the activation that the weights were trained with; None if nothing tells it.
    """

    state: dict[str, Tensor]
    quick_gelu: bool | None


def find_weight_file(path: Path, remedy: str = _REMEDY) -> Path:
    """Return the weight file that a path names: itself, or the one inside a folder.

    Args:
        path: of a file or folder.
        remedy: what to do, for the message.

    Raises:
        CheckpointError: there is none.
    """
    if os.path.isdir(path):
        names = [name for _, files in _FOLDERS for name in files]
        for name in names:
            for file in (path / name, path / f"{name}{_INDEX}"):
                if file.is_file():
                    return file
        raise CheckpointError(
            f"{path}: found no CLIP weights in this folder, expected one of {', '.join(names)}; "
            f"download one, or {remedy}"
        )
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such CLIP weight file or folder; {remedy}")
    return path


def file_sha256(path: Path) -> str:
    """Return the checksum of a file in hex; an unchanged file is read only once."""
    info = path.stat()
    # A copy may have the time of what it was copied from.
    state = (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    return _file_sha256(path.absolute(), state)


@lru_cache
def _file_sha256(path: Path, state: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(path: Path) -> str:
    """Return the checksum of a weight file in hex.

    That of an index json is the one of what ``sha256sum`` prints of its files in their order by
    name, and so ``sha256sum model-*.safetensors | sha256sum``.

    Raises:
        CheckpointError: the index is damaged or names files that are not there.
    """
    if not path.name.endswith(_INDEX):
        return file_sha256(path)
    lines = [f"{file_sha256(file)}  {file.name}\n" for file in sorted(_shards(path))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_clip_weights(
    path: str | Path, *, confirmed_sha256: str = "", remedy: str = _REMEDY
) -> CLIPWeights:
    """Read open_clip, OpenAI or transformers weights without executing what the file may hold.

    Args:
        path: an open_clip state dict (``.pt``, ``.bin``, ``.safetensors``), OpenAI's TorchScript
            archive (``.pt``), the ``.index.json`` of weights in several files, or a folder in the
            Hugging Face layout of open_clip or transformers. What trainers and wrappers put around
            a state dict is taken off (`tagclip.utils.state_dict`), which is logged.
        confirmed_sha256: checksum by which the user vouches for a TorchScript archive that is not
            one of OpenAI's.
        remedy: what to do about a file that is none of a CLIP, for the message.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, unconfirmed, holds no CLIP, or a
            weight in it is no floating-point number, or not a finite one, or a matrix is all zero.
    """
    path = find_weight_file(Path(path), remedy)
    archive = is_torchscript(path)
    if archive:
        _check_confirmed(path, confirmed_sha256)
    content = _read_shards(path) if path.name.endswith(_INDEX) else _read_file(path, archive)
    stored, unwrapped = unwrap(content, path)
    if unwrapped:
        logger.info("%s: CLIP weights unwrapped: %s", path, ", ".join(unwrapped))
    if foreign := foreign_layout(stored):
        raise CheckpointError(f"{path}: {foreign}")
    # Names and shapes alone: tensors of a type that cannot be converted are refused below.
    names = to_open_clip({n: torch.empty(t.shape, device="meta") for n, t in stored.items()})
    if not all(any(name.startswith(tower) for name in names) for tower in (_VISION, _TEXT)):
        if any(name.startswith("sem_seg_head.") for name in names):
            raise CheckpointError(
                f"{path}: found a checkpoint of TagCLIP for Detectron2 (sem_seg_head.*), expected "
                "the weights of a CLIP; it needs no conversion: name it as MODEL.WEIGHTS"
            )
        begins = one_line(", ".join(sorted({n.partition(".")[0] for n in names})[:_LISTED]))
        found = f"{len(names)} tensors whose names begin with {begins}" if names else "no tensors"
        raise CheckpointError(
            f"{path}: found {found}, expected those of a CLIP: an image tower (visual.*) and a "
            f"text tower (token_embedding.* or text.*); {remedy}"
        )
    check_floating({name: t for name, t in stored.items() if not is_constant(name)}, path)
    state = to_open_clip(stored)
    check_finite(state, path, "download it again, or take what it was converted from")
    check_filled(state, path)
    quick_gelu = True if archive or is_openai(stored) else _declared_quick_gelu(path)
    return CLIPWeights(state, quick_gelu)


def _check_confirmed(path: Path, confirmed_sha256: str) -> None:
    found = file_sha256(path)
    if found not in (confirmed_sha256.lower(), *_openai_sha256()):
        raise CheckpointError(
            f"{path}: a TorchScript archive, which holds code, with sha256 {found}, expected one "
            "that OpenAI has published; if you trust it, set MODEL.CLIP.SHA256, of tagclip convert "
            "--sha256, to this value"
        )


def _openai_sha256() -> list[str]:
    """Checksums of OpenAI's archives, which are part of their addresses."""
    from tagclip.modeling.clip.library import open_clip

    models = open_clip.list_openai_models()
    return [open_clip.get_pretrained_url(name, "openai").split("/")[-2] for name in models]


def _read_file(path: Path, archive: bool = False) -> Mapping[str, Any]:
    if path.suffix in (".npz", ".npy"):
        raise CheckpointError(
            f"{path}: found numpy arrays, as big_vision has them, expected tensors; take SigLIP's "
            "weights from open_clip: MODEL.CLIP.NAME ViT-B-16-SigLIP2 (L-16-SigLIP2-256, ...) with "
            "MODEL.CLIP.PRETRAINED webli"
        )
    try:
        if archive:
            content = read_torchscript_tensors(path)
        elif path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = load_torch_file(path)
        check_content(content, path.stat().st_size)
    except ForeignPickleError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}{f': {error}' * isinstance(error, UnsafeFileError)}"
        raise CheckpointError(
            f"{path}: cannot be read ({reason}, {path.stat().st_size} bytes): "
            "incomplete, damaged or unsafe; expected tensors only: download it again or convert it "
            "to .safetensors"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: found a {type(content).__name__}, expected a state dict")
    return content


def _read_shards(index: Path) -> dict[str, Any]:
    """Read weights in several files; each tensor has to be in the one that the index says."""
    content, shards = {}, _shards(index)
    for file, names in shards.items():
        found = _read_file(file)
        if missing := sorted(names - found.keys()):
            raise CheckpointError(
                f"{file}: found no {missing[0]}, expected it there by {index.name}; the two are of "
                "different downloads: download both again"
            )
        content |= {name: found[name] for name in names}
    return content


def _shards(index: Path) -> dict[Path, set[str]]:
    """The files beside an index json, and the names of the tensors in each."""
    try:
        places = load_json(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[Path, set[str]] = {}
        for name, file in places.items():
            if Path(file).name != file:
                raise ValueError(f"{file!r:.80} is no file beside it")
            shards.setdefault(index.with_name(file), set()).add(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: is no index of weights ({error_text(error)}), expected a weight_map of "
            "tensor names to files beside it; download it again"
        ) from error
    if missing := sorted(file.name for file in shards if not os.path.isfile(file)):
        raise CheckpointError(
            f"{index}: found no {', '.join(missing[:_LISTED])} beside it, expected {len(shards)} "
            "files; download all of them"
        )
    return shards


def _declared_quick_gelu(path: Path) -> bool | None:
    """Read the activation from a converted file or the config beside one of a folder."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        # Written by tagclip convert.
        with safe_open(path, "pt") as file:
            declared = (file.metadata() or {}).get("quick_gelu")
        if declared is not None:
            return declared == "true"
    for config, weights in _FOLDERS:
        declared = path.with_name(config)
        if path.name.removesuffix(_INDEX) in weights and declared.is_file():
            try:
                content = load_json(declared.read_text(encoding="utf-8"))
                if config == "config.json":
                    return _transformers_quick_gelu(content)
                return bool(content["model_cfg"].get("quick_gelu", False))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(
                    f"{declared}: cannot tell CLIP's activation ({type(error).__name__}: {error}); "
                    "expected the json that came with the weights: download it again"
                ) from error
    return None


def _transformers_quick_gelu(config: dict[str, Any]) -> bool:
    # transformers leaves out what equals its defaults.
    default = "gelu_pytorch_tanh" if "siglip" in config.get("model_type", "") else "quick_gelu"
    towers = (config.get("vision_config") or {}, config.get("text_config") or {})
    activations = {tower.get("hidden_act", default) for tower in towers}
    if len(activations) > 1 or not activations <= {"quick_gelu", "gelu", "gelu_pytorch_tanh"}:
        raise ValueError(f"hidden_act is {sorted(activations)}, not quick_gelu or gelu")
    return activations == {"quick_gelu"}
