"""Low-resolution logits of an evaluation: gates and biases can be tried on them without a model.

``logits/`` holds one safetensors file per image. For each of its views (see `ScoreFusion`) v:
``class_logits.v`` (W, K, h, w) and, with a trusty map, ``trusty_logits.v`` (W, 1, h, w), float16,
one row per window. The metadata ``fusion`` is json: size of the result, windows, seen classes and
gate. ``index.json``, written last, says what all of it is; without it the files are not complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from tagclip.errors import ConfigError
from tagclip.evaluation.report import format_json
from tagclip.evaluation.run_folder import empty_folder, writable
from tagclip.evaluation.saved_predictions import ImageName, image_names
from tagclip.modeling.inference.fusion import ScoreFusion
from tagclip.modeling.inference.gate import Gate
from tagclip.modeling.inference.windows import ViewLogits, WindowGrid
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import write_atomic
from tagclip.utils.untrusted import load_json

__all__ = ["FOLDER", "INDEX", "LogitWriter", "SavedLogits"]

FOLDER, INDEX = "logits", "index.json"
_FORMAT = 1
_FUSION = "fusion"
_LARGEST = torch.finfo(torch.float16).max
# Planes of a chunk of classes; a CPU has its own value.
_WORKSPACE_MIB = 256
_ADVICE = "evaluate again with TEST.SAVE_LOGITS True"


class LogitWriter:
    """Writes the logits of one dataset image by image; each process writes its own images."""

    def __init__(self, folder: str | Path, images: Iterable[str], distributed: bool = True) -> None:
        """Write nothing yet.

        Args:
            folder: ``logits/`` of an evaluation, which belongs to this class alone.
            images: files of the whole dataset.
            distributed: whether all processes write into the folder.
        """
        self._folder, self._names = Path(folder), image_names(images)
        self._distributed = distributed

    def start(self) -> None:
        """Remove what an earlier evaluation left; every process of the evaluation calls this.

        Raises:
            ConfigError: the folder cannot be written.
        """
        with self._writable():
            empty_folder(self._folder, self._distributed)

    def write(self, image: str, fusion: ScoreFusion | None, size: tuple[int, int]) -> None:
        """Write one image.

        Args:
            image: its file.
            fusion: its logits.
            size: (height, width) of its prediction in pixels.

        Raises:
            ConfigError: the model gave no logits, or the file cannot be written.
        """
        if fusion is None:
            raise ConfigError(
                f"TEST.SAVE_LOGITS: found no logits in the model's output for {image}, expected "
                "those of a TagCLIP model built with this key; set it to False"
            )
        tensors = {}
        for number, view in enumerate(fusion.views):
            tensors[f"class_logits.{number}"] = _half(view.class_logits)
            if view.trusty_logits is not None:
                tensors[f"trusty_logits.{number}"] = _half(view.trusty_logits)
        content = save(tensors, {_FUSION: json.dumps(_describe(fusion, size))})
        with self._writable():
            write_atomic(_path(self._folder, self._names[image]), content)

    def finish(self, content: Mapping[str, Any]) -> None:
        """Write ``index.json``: in the main process, when all have written.

        Args:
            content: what ``metrics.json`` holds.

        Raises:
            ConfigError: the file cannot be written, or the images of other machines are not here.
        """
        paths = [_path(self._folder, name) for name in self._names.values()]
        paths = [path for path in paths if path.is_file()]
        if len(paths) != content["images"]:
            raise ConfigError(
                f"{self._folder}: found logits of {len(paths)} images, expected {content['images']}"
                "; set an OUTPUT_DIR that all machines share"
            )
        fusion = _read(paths[0], lambda file: load_json(file.metadata()[_FUSION]))
        index = {
            "format": _FORMAT,
            "dataset": content["dataset"],
            "images": content["images"],
            "vocabulary": content["vocabulary"],
            "vocabulary_fingerprint": content["vocabulary_fingerprint"],
            "split": content["split"],
            **{key: fusion[key] for key in ("gate", "trusty_target", "seen")},
            "bytes": sum(path.stat().st_size for path in paths),
            "run": content["run"],
            "classes": [entry["name"] for entry in content["classes"]],
        }
        with self._writable():
            write_atomic(self._folder / INDEX, format_json(index))

    def _writable(self) -> AbstractContextManager[None]:
        return writable(self._folder, "logits", "TEST.SAVE_LOGITS False")


@dataclass(frozen=True)
class SavedLogits:
    """The logits of an evaluation.

    Attributes:
        folder: ``logits/``.
        index: content of ``index.json``.
    """

    folder: Path
    index: dict[str, Any]
    _names: dict[str, ImageName]

    @classmethod
    def open(cls, folder: str | Path, vocabulary: Vocabulary, images: Iterable[str]) -> SavedLogits:
        """Read the index.

        Args:
            folder: ``logits/``.
            vocabulary: the K classes that the logits should be of, seen as for the model.
            images: files of the whole dataset.

        Raises:
            ConfigError: there are none, they are not complete, or of other classes.
        """
        path = Path(folder) / INDEX
        try:
            index = load_json(path.read_text(encoding="utf-8"))
            found = index["format"], str(index["vocabulary_fingerprint"]), index["seen"]
        except FileNotFoundError as error:
            raise ConfigError(f"{path}: no such file, no complete logits; {_ADVICE}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error
        seen = vocabulary.seen_mask.tolist()
        if found != (_FORMAT, vocabulary.fingerprint, seen):
            raise ConfigError(
                f"{path}: found format {found[0]}, class list {found[1][:12]} and "
                f"{sum(found[2])} seen classes, expected {_FORMAT}, {vocabulary.fingerprint[:12]} "
                f"of {vocabulary.name} and {sum(seen)}; {_ADVICE}"
            )
        return cls(Path(folder), index, image_names(images))

    def has(self, image: str) -> bool:
        """Whether an image was evaluated."""
        return _path(self.folder, self._names[image]).is_file()

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
        path = _path(self.folder, self._names[image])
        fusion, size = _read(path, lambda file: _parse(file, torch.device(device)))
        classes = len(self.index["seen"])
        if any(view.class_logits.shape[1] != classes for view in fusion.views):
            raise ConfigError(f"{path}: found no logits of {classes} classes; {_ADVICE}")
        return fusion, size


def _path(folder: Path, name: ImageName) -> Path:
    return folder / f"{name.stem}.safetensors"


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
        pair = [f"class_logits.{number}", f"trusty_logits.{number}"]
        tensors = [file.get_tensor(n).to(device).float() if n in names else None for n in pair]
        grid = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["grid"].items()}
        views.append(
            ViewLogits(*tensors, WindowGrid(**grid), tuple(entry["padded_size"]), entry["mirrored"])
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


def _read(path: Path, parse: Any) -> Any:
    try:
        with safe_open(path, "pt") as file:
            return parse(file)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file, no complete logits; {_ADVICE}") from error
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ConfigError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ConfigError(f"{path}: found damaged logits ({reason}); {_ADVICE}")
