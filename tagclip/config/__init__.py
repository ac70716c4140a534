"""The config: every key with its default and values, checks, and loading of layered yaml files."""

from tagclip.config.checks import (
    available_device,
    check_config,
    check_device,
    check_registered,
    check_train_sizes,
    check_training,
    check_value,
    choices,
    unread_keys,
)
from tagclip.config.defaults import add_tagclip_config
from tagclip.config.loading import build_config, find_config, load_config, resolve_paths

__all__ = [
    "add_tagclip_config",
    "available_device",
    "build_config",
    "check_config",
    "check_device",
    "check_registered",
    "check_train_sizes",
    "check_training",
    "check_value",
    "choices",
    "find_config",
    "load_config",
    "resolve_paths",
    "unread_keys",
]
