"""Checking of config values that are one of a few words."""

from __future__ import annotations

from collections.abc import Sequence

from tagclip.errors import ConfigError

__all__ = ["require_choice"]


def require_choice(value: str, key: str, choices: Sequence[str]) -> None:
    """Raise ConfigError naming the key and the choices unless `value` is one of them."""
    if value not in choices:
        raise ConfigError(f"{key} is {value!r}, expected {' or '.join(map(repr, choices))}")
