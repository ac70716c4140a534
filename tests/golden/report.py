"""Golden files, and what was compared with them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["ACTIVATION", "Golden", "Report"]

# Tolerances: activations and scores; weighted losses, in units of max(1, loss); gradients, in
# units of a tensor's largest entry; gradients that are mathematically zero.
ACTIVATION, LOSS, GRADIENT, ZERO_GRADIENT = 2e-5, 1e-4, 1e-3, 1e-5
# Pixels of two equal scores that other hardware may decide otherwise.
_TIES = 5
# What the model is built from or what only describes the file.
_NOT_COMPARED = ("config/", "meta/", "state_dict/", "zegclip_state_dict/", "trim/")
# The released transductive stage, which is not rebuilt (docs/method.md, section 6).
_SKIPPED = ("trans_official_",)
_GROUPS = re.compile(
    r"(?P<a>(?:train|trans)\w*/(?:grad|unweighted|weighted))/"
    r"|(?P<b>lr/\w+|posembed|text|tokenizer|optim)/"
)


class Golden:
    """A golden file: flat dict of tensors, numbers, strings and lists.

    In a trimmed copy (`golden.trim`) the planes named in ``trim/planes`` hold every
    ``trim/step``-th row and column.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.used_inputs: set[str] = set()
        self._trimmed = frozenset(data.get("trim/planes", ()))

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def config(self, key: str) -> Any:
        """Value of ``config/<key>``."""
        return self.data[f"config/{key}"]

    def input(self, key: str) -> Tensor:
        """Tensor ``inputs/<key>``."""
        self.used_inputs.add(f"inputs/{key}")
        return self.data[f"inputs/{key}"]

    def tree(self, prefix: str) -> dict[str, Any]:
        """Everything below ``prefix/``, without it."""
        start = f"{prefix}/"
        return {k.removeprefix(start): v for k, v in self.data.items() if k.startswith(start)}

    def keys(self, pattern: str, *required: str) -> list[str]:
        """Keys that match a whole regular expression, in the file's order, and required ones."""
        found = [key for key in self.data if re.fullmatch(pattern, key)]
        return found + [key for key in required if key not in found]

    def trim(self, key: str, ours: Tensor) -> Tensor:
        """The part of a tensor of ours that the file has."""
        if key not in self._trimmed:
            return ours
        step = self.data["trim/step"]
        return ours[..., ::step, ::step]


@dataclass
class Group:
    """What was found in one group.

    Attributes:
        difference: the largest one.
        tolerance: the largest one.
        over: keys over their tolerance, with the reason.
        details: one line per key.
        keys: everything that was compared.
    """

    difference: float = 0.0
    tolerance: float = 0.0
    over: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


class Report:
    """Collects differences per group of keys, in the order in which they are reported.

    Attributes:
        golden: the file.
        groups: name -> what was found, in the order of the forward pass.
        compared: all keys of the file that something was compared with.
    """

    def __init__(self, golden: Golden) -> None:
        self.golden = golden
        self.groups: dict[str, Group] = {}
        self.compared: set[str] = set()

    def close(
        self, key: str, ours: Tensor, tolerance: float = ACTIVATION, *, scale: float = 1.0
    ) -> None:
        """Compare floats: the largest absolute difference divided by ``scale``."""
        theirs = self._take(key)
        if theirs is None:
            return
        ours = self.golden.trim(key, torch.as_tensor(ours).detach())
        # A list of numbers has double precision.
        theirs = torch.as_tensor(theirs, dtype=None if isinstance(theirs, Tensor) else torch.double)
        if ours.numel() != theirs.numel() or ours.squeeze().shape != theirs.squeeze().shape:
            shapes = f"{tuple(ours.shape)} instead of {tuple(theirs.shape)}"
            self._record(key, math.inf, tolerance, shapes)
            return
        difference = (ours.double().squeeze() - theirs.double().squeeze()).abs().max().item()
        self._record(key, difference / scale, tolerance)

    def loss(self, key: str, ours: Tensor) -> None:
        """Compare a loss, relative to its size where that is above 1."""
        if key in self.golden:
            scale = max(1.0, float(torch.as_tensor(self.golden.data[key]).abs().max()))
            self.close(key, ours, LOSS, scale=scale)
        else:
            self._take(key)

    def accuracy(self, key: str, ours: Tensor, pixels: int) -> None:
        """Compare a percentage of ``pixels``: as many may be ties as `_TIES` says."""
        theirs = self._take(key)
        if theirs is not None:
            different = abs(float(ours) - float(theirs)) / 100 * pixels
            self._record(key, different / _TIES * LOSS, LOSS, f"{different:.1f} pixels")

    def gradient(self, keys: Sequence[str], ours: Tensor, theirs: Tensor, is_zero: bool) -> None:
        """Compare a gradient with that of the official tensors that it stands for."""
        for key in keys:
            self._take(key)
        scale = 1.0 if is_zero else max(theirs.abs().max().item(), 1e-30)
        tolerance = ZERO_GRADIENT if is_zero else GRADIENT
        if ours.shape != theirs.shape:
            self._record(keys[0], math.inf, tolerance, f"{ours.shape} is not {theirs.shape}")
            return
        difference = (ours.double() - theirs.double()).abs().max().item() / scale
        # One line per group: gradients that are zero count in units of the others' tolerance.
        self._record(keys[0], difference * GRADIENT / tolerance, GRADIENT)

    def equal(self, key: str, ours: Any) -> None:
        """Compare labels, lists, numbers or words exactly; counts the differences."""
        theirs = self._take(key)
        if theirs is None:
            return
        if isinstance(theirs, Tensor):
            ours = self.golden.trim(key, torch.as_tensor(ours)).squeeze()
            theirs = theirs.squeeze()
            same_shape = ours.shape == theirs.shape
            wrong = (ours.long() != theirs.long()).sum().item() if same_shape else math.inf
            self._record(key, float(wrong), 0.0, "" if same_shape else "shapes differ")
        else:
            self._record(key, float(ours != theirs), 0.0)

    def labels(self, key: str, ours: Tensor, scores: Tensor) -> None:
        """Compare label maps up to ties: by how much the scores of both answers differ.

        Args:
            key: the golden label map (..., H, W).
            ours: the same of ours.
            scores: (..., K, H, W) our scores of all classes, by which both are judged.
        """
        theirs = self._take(key)
        if theirs is None:
            return
        ours, scores = self.golden.trim(key, ours).long(), self.golden.trim(key, scores)
        theirs, count = theirs.long(), scores.shape[-3]
        different = ours != theirs
        if different.any() and not torch.stack([ours, theirs])[:, different].lt(count).all():
            self._record(key, math.inf, ACTIVATION, "one of two different labels is no class")
            return
        picked = [
            scores.gather(-3, labels.clamp(0, count - 1).unsqueeze(-3)) for labels in (ours, theirs)
        ]
        lost = (picked[0] - picked[1]).abs().squeeze(-3)[different]
        detail = f"{different.sum()} labels differ" if different.any() else ""
        # Another label at equal scores is a tie, but not the same answer.
        self._record(key, lost.max().item() if len(lost) else 0.0, ACTIVATION, detail)

    def finish(self) -> None:
        """Report what the file has and nothing was compared with."""
        for key in self.golden.data:
            seen = key in self.compared or key in self.golden.used_inputs
            if not seen and not key.startswith(_NOT_COMPARED + _SKIPPED):
                self._record(key, math.inf, 0.0, "not compared")

    @property
    def failed(self) -> list[str]:
        """Names of the groups that are over their tolerance, missing or not compared."""
        return [name for name, group in self.groups.items() if group.over]

    def lines(self, verbose: bool = False) -> list[str]:
        """One line per group; ``verbose`` adds one per tensor."""
        lines = []
        for name, group in self.groups.items():
            state = "FAIL" if group.over else "ok"
            text = f"{state:4} {name:44} {group.difference:9.2e}  tolerance {group.tolerance:.0e}"
            lines.append(text + (f"  {'; '.join(group.over[:3])}" if group.over else ""))
            lines += [f"       {detail}" for detail in group.details if verbose]
        return lines

    def _take(self, key: str) -> Any:
        self.compared.add(key)
        if key not in self.golden:
            self.missing(key)
            return None
        return self.golden.data[key]

    def missing(self, key: str) -> None:
        """Report a key that a golden file has to have."""
        self._record(key, math.inf, 0.0, "missing in the file")

    def _record(self, key: str, difference: float, tolerance: float, detail: str = "") -> None:
        match = _GROUPS.match(key)
        group = self.groups.setdefault((match["a"] or match["b"]) if match else key, Group())
        detail = f": {detail}" if detail else ""
        group.keys.append(key)
        group.details.append(f"{key} {difference:.2e}{detail}")
        # Also true for NaN.
        if not difference <= tolerance:
            group.over.append(f"{key}{detail}")
        if not group.difference >= difference:
            group.difference = difference
        group.tolerance = max(group.tolerance, tolerance)
