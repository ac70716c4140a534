"""Every value of a config by its full key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of a key such as ``SOLVER.MAX_ITER`` and its value."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changed_keys(a: CfgNode, b: CfgNode) -> set[str]:
    """Keys in which two configs differ."""
    first, second = dict(leaves(a)), dict(leaves(b))
    return {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}
