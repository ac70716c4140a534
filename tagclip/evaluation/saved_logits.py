"""Low-resolution logits of an evaluation: gates and biases can be tried on them without a model.

``logits/`` holds one safetensors file per image. For each of its views (see `ScoreFusion`) v:
``class_logits.v`` (W, K, h, w), with a trusty map ``trusty_logits.v`` (W, 1, h, w) and with
BACKGROUND auto ``margins.v`` (W, 1, h, w), float16, one row per window. The metadata ``fusion`` is
json: size of the result, windows, seen classes and gate (for ``index.json`` see
`tagclip.evaluation.saved_folder`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from tagclip.errors import ConfigError
from tagclip.evaluation.saved_folder import FolderKind, FolderWriter, SavedFolder
from tagclip.modeling.inference.fusion import ScoreFusion
from tagclip.modeling.inference.gate import Gate
from tagclip.modeling.inference.windows import ViewLogits, WindowGrid
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import write_atomic
from tagclip.utils.text import json_text
from tagclip.utils.untrusted import load_json

__all__ = ["LogitWriter", "SavedLogits"]

_FORMAT = 1
_KIND = FolderKind(
    "logits", "TEST.SAVE_LOGITS True", "TEST.SAVE_LOGITS False", "{}.safetensors", (_FORMAT,), True
)
_FUSION = "fusion"
_LARGEST = torch.finfo(torch.float16).max
# Planes of a chunk of classes; a CPU has its own value.
_WORKSPACE_MIB = 256


class LogitWriter(FolderWriter):
    """Writes the logits of one dataset image by image; each process writes its own images."""

    kind = _KIND

    def write(self, image: str, labels: np.ndarray, output: Mapping[str, Any]) -> None:
        """Write one image.

        Args:
            image: its file.
            labels: (H, W), the prediction, whose size is kept.
            output: of the model, with ``logits``, a `ScoreFusion`.

        Raises:
            ConfigError: the model gave no logits, or the file cannot be written.
        """
        fusion, tensors = output.get("logits"), {}
        if fusion is None:
            raise ConfigError(
                f"TEST.SAVE_LOGITS: found no logits in the model's output for {image}, expected "
                "those of a TagCLIP model built with this key; set it to False"
            )
        for number, view in enumerate(fusion.views):
            tensors[f"class_logits.{number}"] = _half(view.class_logits)
            for name in ("trusty_logits", "margins"):
                if getattr(view, name) is not None:
                    tensors[f"{name}.{number}"] = _half(getattr(view, name))
        content = save(tensors, {_FUSION: json_text(_describe(fusion, labels.shape))})
        with self.kind.writing(self._folder):
            write_atomic(self._file(image), content)

    def _index(self, content: Mapping[str, Any], files: Sequence[Path]) -> dict[str, Any]:
        fusion = _read(files[0], lambda file: load_json(file.metadata()[_FUSION]))
        return {
            "format": _FORMAT,
            **{key: fusion[key] for key in ("gate", "trusty_target", "seen")},
            "bytes": sum(path.stat().st_size for path in files),
            "run": content["run"],
        }


class SavedLogits(SavedFolder):
    """The logits of an evaluation."""

    kind = _KIND

    @classmethod
    def _check_index(
        cls, folder: str | Path, index: Mapping[str, Any], vocabulary: Vocabulary
    ) -> None:
        """Their classes have to be seen as for the model, and the gate has to be one."""
        with cls.kind.reading(Path(folder) / "index.json", ConfigError):
            Gate(**index["gate"])
            if not isinstance(target := index["trusty_target"], (str, NoneType)):
                raise TypeError(f"trusty_target {target!r:.40}")
        seen = vocabulary.seen_mask.tolist()
        if index.get("seen") != seen:
            raise ConfigError(
                f"{folder}: found logits with other seen classes, expected the {sum(seen)} of "
                f"{vocabulary.name}; evaluate again with {cls.kind.save}"
            )

    def read(
        self, image: str, device: str | torch.device = "cpu"
    ) -> tuple[ScoreFusion, tuple[int, int]]:
        """Read one image.

        Returns:
            Its logits (float32) with the gate of the evaluation, and (height, width) of the
            evaluated prediction.

        Raises:
            ConfigError: the file is missing, damaged, or of other classes.
        """
        path = self._file(image)
        fusion, size = _read(path, lambda file: _parse(file, torch.device(device)))
        classes = len(self.index["seen"])
        if any(view.class_logits.shape[1] != classes for view in fusion.views):
            raise ConfigError(
                f"{path}: found no logits of {classes} classes; evaluate again with "
                f"{self.kind.save}"
            )
        return fusion, size


def _half(logits: torch.Tensor) -> torch.Tensor:
    # A sigmoid is 0 or 1 long before: what is beyond must not become infinite.
    return logits.clamp(-_LARGEST, _LARGEST).half().cpu().contiguous()


def _describe(fusion: ScoreFusion, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "size": list(size),
        "seen": fusion.seen_mask.tolist(),
        "gate": asdict(fusion.gate),
        "trusty_target": None if fusion.views[0].trusty_logits is None else fusion.trusty_target,
        "views": [
            {"grid": asdict(v.grid), "padded_size": v.padded_size, "mirrored": v.mirrored}
            for v in fusion.views
        ],
    }


def _parse(file: Any, device: torch.device) -> tuple[ScoreFusion, tuple[int, int]]:
    fusion = load_json(file.metadata()[_FUSION])
    names, views = set(file.keys()), []
    for number, entry in enumerate(fusion["views"]):
        parts = [f"{name}.{number}" for name in ("class_logits", "trusty_logits", "margins")]
        classes, trusty, margins = (
            file.get_tensor(n).to(device).float() if n in names else None for n in parts
        )
        grid = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["grid"].items()}
        views.append(
            ViewLogits(
                classes,
                trusty,
                WindowGrid(**grid),
                tuple(entry["padded_size"]),
                entry["mirrored"],
                margins,
            )
        )
        if len(views[-1].class_logits) != len(views[-1].grid):
            raise ValueError(f"{len(views[-1].class_logits)} of {len(views[-1].grid)} windows")
    found = ScoreFusion(
        tuple(views),
        seen_mask=torch.tensor(fusion["seen"], device=device),
        gate=Gate(**fusion["gate"]),
        trusty_target=fusion["trusty_target"],
        workspace_mib=_WORKSPACE_MIB,
    )
    return found, tuple(fusion["size"])


def _read(path: Path, parse: Callable[[Any], Any]) -> Any:
    with _KIND.reading(path, SafetensorError), safe_open(path, "pt") as file:
        return parse(file)
