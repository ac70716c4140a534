"""Modules without the random values that loading overwrites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

__all__ = ["SkipInit"]

# Methods of tensors, and the functions of torch.nn.init that go by a name of their own.
_RANDOM = {"normal_", "uniform_"} | {
    f"{name}_{distribution}_"
    for name in ("kaiming", "xavier")
    for distribution in ("normal", "uniform")
}


class SkipInit(TorchFunctionMode):
    """Leaves tensors inside as they are where they would be filled with random values.

    Every random tensor of a module that is built so has to be loaded.
    On the meta device the same would be slower: torch loads its compiler for it.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
