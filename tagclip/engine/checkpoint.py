"""Checkpoints that hold what was trained and refuse what does not fit."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import Tensor, nn

from tagclip.errors import CheckpointError

__all__ = ["TagCLIPCheckpointer", "checkpoint_metadata", "read_checkpoint"]

FORMAT = 1
_PATH_KEYS = ("NAME", "PRETRAINED", "CACHE_DIR", "TEXT_CACHE")


def checkpoint_metadata(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """Describe a model so that it can be rebuilt and compared: strings and numbers only.

    The config's paths become relative to ``OUTPUT_DIR``, where checkpoints lie.
    """
    portable = cfg.clone()
    portable.defrost()
    folder = os.path.abspath(cfg.OUTPUT_DIR)
    clip = portable.MODEL.CLIP
    for key in _PATH_KEYS:
        if os.path.isabs(clip[key]):
            clip[key] = os.path.join(".", os.path.relpath(clip[key], folder))
    portable.OUTPUT_DIR, portable.MODEL.WEIGHTS = "./output", ""
    vocabulary = model.train_vocabulary
    return {
        "format": FORMAT,
        "config": portable.dump(),
        "clip_sha256": model.backbone.weights_sha256,
        "trusty_target": model.trusty_target,
        "classes": list(vocabulary.names),
        "vocabulary_fingerprint": vocabulary.fingerprint,
        "seed": cfg.SEED,
    }


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without executing anything that it may hold.

    Returns:
        A dict with ``model`` (name -> tensor) and whatever else was saved.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or no checkpoint.
    """
    path = Path(path)
    if path.suffix not in (".pth", ".safetensors"):
        raise CheckpointError(
            f"{path}: found a {path.suffix or 'file without suffix'}, expected .pth or "
            ".safetensors; other formats may execute code and are not read"
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; check MODEL.WEIGHTS")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return {"model": load_file(path)}
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}, {path.stat().st_size} bytes): "
            "incomplete, damaged or unsafe; use the previous checkpoint beside it"
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"{path}: found a {type(checkpoint).__name__}, expected a dict of tensors"
        )
    return checkpoint if "model" in checkpoint else {"model": checkpoint}


class TagCLIPCheckpointer(DetectionCheckpointer):
    """Saves trainable parameters only, atomically; loads strictly.

    CLIP itself and the text bank are never stored: their fingerprint is.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        metadata: dict[str, Any] | None = None,
        allow_partial: bool = False,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        """Prepare.

        Args:
            model: the model, possibly wrapped for several processes.
            save_dir: folder of the checkpoints.
            metadata: stored with every checkpoint, see `checkpoint_metadata`.
            allow_partial: load what fits and warn about the rest.
            save_to_disk: default: only in the main process.
            checkpointables: optimizer, trainer and so on, restored on resume.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.metadata, self.allow_partial = metadata or {}, allow_partial
        self.logger = logging.getLogger(__name__)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth and then ``last_checkpoint``; either is complete or absent."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": _trainable(self.model), "tagclip": self.metadata}
        data |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        _write_atomic(path, lambda file: torch.save(data | kwargs, file))
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that ``--resume`` takes."""
        content = last_filename_basename.encode()
        _write_atomic(Path(self.save_dir) / "last_checkpoint", lambda file: file.write(content))

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint; "" starts from CLIP.

        Raises:
            CheckpointError: see `read_checkpoint`, or it does not fit the model.
        """
        if not path:
            self.logger.info("MODEL.WEIGHTS is empty: starting from CLIP")
            return {}
        return super().load(str(path), *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename)
        checkpoint["__file__"] = filename
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        path, state = checkpoint.pop("__file__"), checkpoint.pop("model")
        own = _trainable(self.model)
        wrong = self._compare_metadata(checkpoint.get("tagclip", {}))
        shapes = [n for n in sorted(own.keys() & state.keys()) if own[n].shape != state[n].shape]
        wrong += [f"{n} is missing" for n in sorted(own.keys() - state.keys())]
        wrong += [f"{n} is unknown" for n in sorted(state.keys() - own.keys())]
        wrong += [f"{n} is {_size(state[n])} instead of {_size(own[n])}" for n in shapes]
        if wrong:
            text = f"{path}: does not fit the model: {'; '.join(wrong[:8])}"
            text += f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
            if not self.allow_partial:
                raise CheckpointError(
                    f"{text}; use the config it was trained with, or evaluate what fits with "
                    "TEST.ALLOW_PARTIAL_WEIGHTS True"
                )
            self.logger.warning("%s; loading the rest", text)
        fitting = {n: t for n, t in state.items() if n in own and n not in shapes}
        self.model.load_state_dict(fitting, strict=False)
        return _IncompatibleKeys([], [], [])

    def _compare_metadata(self, saved: dict[str, Any]) -> list[str]:
        differences = []
        for key, remedy in (
            ("clip_sha256", "MODEL.CLIP.PRETRAINED"),
            ("trusty_target", "MODEL.TAGCLIP.TRUSTY.TARGET"),
        ):
            found, expected = saved.get(key), self.metadata.get(key)
            if None not in (found, expected) and found != expected:
                differences.append(f"{key} is {found}, the config's is {expected} ({remedy})")
        return differences


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _write_atomic(path: Path, write: Any) -> None:
    """Write to a temporary file beside ``path``, flush it to the disk, then rename it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
