"""Results that a model card may show: metrics.json files that are of these weights."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tagclip.errors import CheckpointError
from tagclip.utils.text import error_text
from tagclip.utils.untrusted import load_json

__all__ = ["results_beside", "results_of"]

logger = logging.getLogger(__name__)


def results_of(
    files: Iterable[str | Path], metadata: dict[str, Any], weights_sha256: Iterable[str], steps: int
) -> list[dict[str, Any]]:
    """Read the results of a model.

    Args:
        files: metrics.json files that evaluations of it wrote.
        metadata: see `checkpoint_metadata`.
        weights_sha256: checksums of files with its weights.
        steps: how long it was trained.

    Returns:
        Of each file ``file``, ``sha256``, ``dataset``, ``split``, ``protocol`` and ``metrics``, in
        percent.

    Raises:
        CheckpointError: a file is none of results, or is of another model.
    """
    known = set(weights_sha256)
    return [_read(Path(file), metadata, known, steps) for file in files]


def results_beside(
    weights: Path, metadata: dict[str, Any], weights_sha256: Iterable[str], steps: int
) -> list[dict[str, Any]]:
    """Read the results of a model that lie beside its checkpoint; log those of another one.

    Arguments and result are those of `results_of`; ``weights`` is the checkpoint.
    """
    found = []
    for file in sorted(weights.parent.glob("inference/*/metrics.json")):
        try:
            found += results_of([file], metadata, weights_sha256, steps)
        except CheckpointError as error:
            logger.warning("Not shown in the card: %s", error)
    return found


def _read(file: Path, metadata: dict[str, Any], known: set[str], steps: int) -> dict[str, Any]:
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
    if other := _difference(run, metadata, known, steps):
        raise CheckpointError(
            f"{file}: is of another model: found {other}; evaluate this one (tagclip evaluate), or "
            "name the file of its own evaluation"
        )
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _difference(run: dict[str, Any], metadata: dict[str, Any], known: set[str], steps: int) -> str:
    """What tells that results are of another model, and what was expected; "" if nothing does."""
    pairs = [
        ("seed", run.get("seed"), metadata.get("seed")),
        ("clip_sha256", run.get("clip_sha256"), metadata.get("clip_sha256")),
        (
            "training_vocabulary",
            run.get("training_vocabulary"),
            metadata.get("vocabulary_fingerprint"),
        ),
    ]
    if run.get("iterations") is None:
        found = run.get("weights_sha256")
        pairs.append(("weights_sha256", found, found if found in known else min(known)))
    else:
        pairs.append(("iterations", run["iterations"], steps or None))
    return next(
        (
            f"{key} {found}, expected {expected}"
            for key, found, expected in pairs
            if None not in (found, expected) and found != expected
        ),
        "",
    )
