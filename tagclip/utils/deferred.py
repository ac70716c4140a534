"""Imports of outside packages that wait until what they bring is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

__all__ = ["deferred"]


@contextmanager
def deferred(module: str, *functions: str) -> Iterator[None]:
    """Let packages that are imported inside take functions of a module without loading it.

    They get functions that load the module when they are called. Whoever takes another name of it
    loads it at once; afterwards it is imported as ever. Does nothing where it is loaded already.

    Args:
        module: its full name.
        functions: names in it that are only called, for instance functions and classes.
    """
    if module in sys.modules:
        yield
        return
    stand_in = sys.modules[module] = _StandIn(module, functions)
    try:
        yield
    finally:
        stand_in.leave()


class _StandIn(ModuleType):
    """What ``sys.modules`` holds in the place of a module."""

    def __init__(self, name: str, functions: tuple[str, ...]) -> None:
        super().__init__(name)
        self._functions = functions

    def leave(self) -> None:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._late(name) if name in self._functions else self._find(name)

    def _late(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._find(name)(*args, **kwargs)

        return call

    def _find(self, name: str) -> Any:
        self.leave()
        return getattr(importlib.import_module(self.__name__), name)
