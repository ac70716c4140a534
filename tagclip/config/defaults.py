"""The table of config keys, keys.yaml, and the defaults in it."""

from __future__ import annotations

from copy import copy
from functools import cache
from importlib import resources

from detectron2.config import CfgNode as CN

import tagclip
from tagclip.config.keys import DETECTRON2, Key
from tagclip.utils.untrusted import load_yaml

__all__ = ["add_tagclip_config", "config_keys"]


@cache
def config_keys() -> dict[str, dict[str, Key]]:
    """Return the table: title of a section -> name of a key -> what it may be."""
    text = (resources.files("tagclip.config") / "keys.yaml").read_text(encoding="utf-8")
    return {
        title: {name: Key.from_row(name, row) for name, row in rows.items()}
        for title, rows in load_yaml(text).items()
    }


def add_tagclip_config(cfg: CN) -> None:
    """Add TagCLIP's keys, with their defaults, to a detectron2 config (in place).

    Registers TagCLIP in detectron2 as well, so that the names in the config mean something.
    """
    tagclip.register()
    for keys in config_keys().values():
        for key in keys.values():
            if key.default is not DETECTRON2:
                node = cfg
                for section in key.path[:-1]:
                    node = node.setdefault(section, CN())
                node[key.path[-1]] = copy(key.default)
