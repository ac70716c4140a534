"""Modules without the random values that loading overwrites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

__all__ = ["SkipInit"]


class SkipInit(TorchFunctionMode):
    """Leaves tensors inside as they are where they would be filled with random values.

    Every random tensor of a module that is built so has to be loaded. No random number is drawn.
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
        # The methods, and the functions of torch.nn.init, which end in them.
        if getattr(function, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
