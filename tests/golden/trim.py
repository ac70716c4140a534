#!/usr/bin/env python
"""Make a small copy of a golden file that still has every key.

python tests/golden/trim.py FILE.pt OUT.pt

Full-resolution planes keep every third row and column, integers take the smallest type that holds
them. Nothing is rounded.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

__all__ = ["trimmed"]

_STEP = 3
_INTEGERS = (torch.uint8, torch.int16, torch.int32)
# Inputs and weights are needed as a whole.
_WHOLE = ("inputs/", "state_dict/", "zegclip_state_dict/", "posembed/", "text/")


def trimmed(data: dict[str, Any]) -> dict[str, Any]:
    """Return the copy, with ``trim/step`` and ``trim/planes`` saying what was left out."""
    result, planes = {}, []
    for key, value in data.items():
        if isinstance(value, Tensor):
            if _is_plane(key, value):
                planes.append(key)
                value = value[..., ::_STEP, ::_STEP]
            value = _compact(value).clone()
        result[key] = value
    return result | {"trim/step": _STEP, "trim/planes": planes}


def _is_plane(key: str, value: Tensor) -> bool:
    large = value.ndim >= 3 and min(value.shape[-2:]) > 32
    return large and value.is_floating_point() and not key.startswith(_WHOLE)


def _compact(value: Tensor) -> Tensor:
    if value.is_floating_point():
        return value
    fitting = (kind for kind in _INTEGERS if torch.equal(value.to(kind).to(value.dtype), value))
    return value.to(next(fitting, value.dtype))


def main() -> None:
    """Read, trim, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE.pt")
    parser.add_argument("out", metavar="OUT.pt")
    args = parser.parse_args()
    torch.save(trimmed(torch.load(args.file, weights_only=True)), args.out)


if __name__ == "__main__":
    main()
