"""Results that a model card may show: metrics.json files that are of these weights."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagclip.errors import CheckpointError
from tagclip.structures.provenance import Provenance
from tagclip.utils.text import error_text
from tagclip.utils.untrusted import load_json

__all__ = ["TrainedWeights", "results_beside", "results_of"]

logger = logging.getLogger(__name__)

_REMEDY = "evaluate this one (tagclip evaluate), or name the file of its own evaluation"


@dataclass(frozen=True)
class TrainedWeights:
    """What tells whether results are of these weights.

    Attributes:
        metadata: see `checkpoint_metadata`.
        tensors_sha256: see `tagclip.checkpoint.identity`.
        files_sha256: checksums of files with the weights, the first of where they come from.
        iterations: how long they were trained; None if the file does not say.
        config_hash: of the training's config; None if the file does not hold it as it was.
    """

    metadata: Mapping[str, Any]
    tensors_sha256: str
    files_sha256: tuple[str, ...]
    iterations: int | None = None
    config_hash: str | None = None

    @property
    def start_sha256(self) -> str | None:
        """Of what the last training began from, "" for CLIP; None if unknown."""
        provenance = self.metadata.get("provenance")
        stages = Provenance.from_json(provenance).stages if provenance else ()
        return stages[-1].start_sha256 if stages and stages[-1].fingerprint else None


def results_of(files: Iterable[str | Path], weights: TrainedWeights) -> list[dict[str, Any]]:
    """Read the results of a model.

    Args:
        files: metrics.json files that evaluations of it wrote.
        weights: of the model.

    Returns:
        Of each file ``file``, ``sha256``, ``dataset``, ``split``, ``protocol`` and ``metrics``, in
        percent.

    Raises:
        CheckpointError: a file is none of results, is of another model, or does not say of which.
    """
    return [_read(Path(file), weights) for file in files]


def results_beside(folder: Path, weights: TrainedWeights) -> list[dict[str, Any]]:
    """Read the results of a model that lie below a folder; log those of another one.

    Result and ``weights`` are those of `results_of`.
    """
    found = []
    for file in sorted(folder.glob("inference/*/metrics.json")):
        try:
            found += results_of([file], weights)
        except CheckpointError as error:
            logger.warning("Not shown in the card: %s", error)
    return found


def _read(file: Path, weights: TrainedWeights) -> dict[str, Any]:
    try:
        content = file.read_bytes()
        tree = load_json(content.decode())
        run, metrics = tree["run"], tree["metrics"]
        shown = {k: v for k, v in metrics.items() if _is_number(v)}
        result = {
            "file": f"{file.parent.name}/{file.name}",
            "sha256": hashlib.sha256(content).hexdigest(),
            "dataset": str(tree["dataset"]),
            "split": str(tree.get("split") or ""),
            "protocol": str(run.get("protocol") or ""),
            "metrics": shown,
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: holds no results ({error_text(error)}), expected the metrics.json of an "
            "evaluation; name another file"
        ) from error
    if "predictions" in run:
        raise CheckpointError(
            f"{file}: found the result of tagclip score, which knows no model, expected that of an "
            f"evaluation of this one; {_REMEDY}"
        )
    # A training that began without it has its own weights.
    is_part = run.get("weights_dropped") and run.get("iterations") is None
    if is_part and run.get("trained_sha256") != weights.tensors_sha256:
        raise CheckpointError(
            f"{file}: found the result of an evaluation without the trusty token "
            f"(MODEL.TAGCLIP.TRUSTY.ENABLED False), expected one of the whole model; {_REMEDY}"
        )
    if other := _difference(run, weights):
        raise CheckpointError(f"{file}: is of another model: found {other}; {_REMEDY}")
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _difference(run: dict[str, Any], weights: TrainedWeights) -> str:
    """What tells that results are of another model, and what was expected; "" if nothing does.

    Keys of the test change no weight, so that the config of an evaluation is not compared. What an
    earlier version recorded while it trained is without a checksum of the tensors: there it is
    that of the training.
    """
    metadata = weights.metadata
    rows = [
        ("seed", metadata.get("seed")),
        ("clip_sha256", metadata.get("clip_sha256")),
        ("training_vocabulary", metadata.get("vocabulary_fingerprint")),
    ]
    is_training = run.get("iterations") is not None
    is_of_file = not is_training and run.get("weights_sha256") in weights.files_sha256
    if is_training:
        rows.append(("iterations", weights.iterations))
    if run.get("trained_sha256"):
        rows += [("trained_sha256", weights.tensors_sha256)] * (not is_of_file)
    elif is_training:
        rows += [("config_hash", weights.config_hash), ("start_sha256", weights.start_sha256)]
    elif not is_of_file:
        found = run.get("weights_sha256") or "nothing that tells of which weights it is"
        return f"weights_sha256 {found}, expected {weights.files_sha256[0]}"
    return next(
        (
            f"{key} {run[key]}, expected {expected or 'none'}"
            for key, expected in rows
            if None not in (run.get(key), expected) and run[key] != expected
        ),
        "",
    )
