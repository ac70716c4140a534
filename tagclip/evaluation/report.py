"""The two forms in which an evaluation is reported: a table in the log, and metrics.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

__all__ = ["format_json", "format_table"]

_HEADLINES = (
    "mIoU",
    "mIoU-seen",
    "mIoU-unseen",
    "hIoU",
    "pAcc",
    "pAcc-seen",
    "pAcc-unseen",
    "trusty-AUROC",
)


def format_table(metrics: Mapping[str, float], averaged: Mapping[str, int]) -> str:
    """Return a table of those headline metrics that there are.

    Args:
        metrics: name -> percent; nan is shown as n/a.
        averaged: name of a mean -> number of classes that it averages.
    """
    rows = [
        (name, _number(metrics[name]), averaged.get(name, ""))
        for name in _HEADLINES
        if name in metrics
    ]
    return tabulate(rows, ("metric", "percent", "classes"), disable_numparse=True)


def format_json(content: Mapping[str, Any]) -> str:
    """Return one json object, nan as null; one line per key and per item of a list.

    Args:
        content: json-ready values; lists of one value per class or one row of a matrix stay
            readable.

    Raises:
        ValueError: a value is infinite.
    """
    lines = []
    for key, value in _without_nan(content).items():
        if isinstance(value, list) and value:
            items = ",\n  ".join(json.dumps(item, allow_nan=False) for item in value)
            text = f"[\n  {items}\n ]"
        else:
            text = json.dumps(value, allow_nan=False)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.2f}"


def _without_nan(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
