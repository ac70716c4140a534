"""Writes docs/config.md: ``python -m tagclip.config.reference > docs/config.md``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.config import get_cfg

from tagclip.config.defaults import add_tagclip_config, config_keys
from tagclip.config.keys import DETECTRON2, Key

__all__ = ["config_reference"]

_HEAD = """\
# Config keys

Every key that this library adds to detectron2, and the keys of detectron2 (*) that it reads with a
restriction; the others are documented in detectron2. A value that makes no sense is refused when a
config is loaded. Defaults are those of a config without any yaml file; `configs/Base-ZeroShot.yaml`
sets more. The table is made from tagclip/config/keys.yaml, which is where it is changed:
`python -m tagclip.config.reference > docs/config.md`."""


def config_reference() -> str:
    """Return docs/config.md."""
    cfg = get_cfg()
    add_tagclip_config(cfg)
    return "\n".join(_lines(cfg)) + "\n"


def _lines(cfg: Any) -> Iterator[str]:
    yield _HEAD
    for title, keys in config_keys().items():
        yield f"\n## {title}\n\n| Key | Default | Values | Meaning |\n|---|---|---|---|"
        yield from (_row(key, cfg) for key in keys.values())


def _row(key: Key, cfg: Any) -> str:
    for part in key.path:
        cfg = cfg[part]
    star = " \\*" * (key.default is DETECTRON2)
    values = f"{key.expected}, with {key.when}" if key.when else key.expected
    text = key.text.replace("<", "&lt;").replace("|", "\\|")
    return f"| `{key.name}`{star} | `{cfg!r}` | {values} | {text} |"


if __name__ == "__main__":
    print(config_reference(), end="")
