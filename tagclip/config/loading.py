"""Loading of layered yaml files and command-line overrides into a config."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import chain
from operator import getitem
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from tagclip.config.checks import check_config, expected_value
from tagclip.config.defaults import add_tagclip_config
from tagclip.errors import ConfigError
from tagclip.model_zoo import get_config_file, suggestion
from tagclip.projects import current_path
from tagclip.utils.files import expand_path
from tagclip.utils.text import counted, did_you_mean, one_line
from tagclip.utils.text_file import NotUtf8Error, read_text_file
from tagclip.utils.untrusted import load_yaml

__all__ = [
    "advice_if_relative",
    "build_config",
    "check_overrides",
    "find_config",
    "load_config",
    "resolve_paths",
]

# A user means a folder relative to where the command is run, as everywhere in detectron2.
_CWD_RELATIVE = ("OUTPUT_DIR",)
# What is relative to the yaml that says so.
_RELATIVE = ("./", "../")
# A name or a list; yacs would insist on the type of the default.
_NAME_OR_LIST = "MODEL.CLIP.TEMPLATES"
# What yacs and Python raise on values of other types; the key says better what is wrong.
_MISFITS = (ValueError, TypeError, AssertionError, KeyError, OverflowError, RecursionError)
# Old name -> new name of the config files beside it.
_RENAMED = "renamed.json"


def load_config(config_file: str | Path = "", opts: Sequence[str] = ()) -> CN:
    """Build a config from the defaults, a layered yaml file and command-line overrides.

    Inside a yaml, a string that starts with ``./`` or ``../`` is a path relative to that yaml
    (each file of a ``_BASE_`` chain on its own), except ``OUTPUT_DIR``. ``~`` and ``$NAME`` are
    replaced in every path (`expand_path`). ``CONFIG_NAME`` becomes the file's name unless it is
    set, as in the config.yaml of a run.

    Args:
        config_file: yaml file, possibly with ``_BASE_``, or a name of `tagclip.model_zoo`; ""
            takes the defaults.
        opts: alternating keys and values, as after detectron2's command line.

    Raises:
        ConfigError: a file is missing or no plain yaml, a key is unknown, or a value has the
            wrong type or makes no sense.
    """
    path = find_config(config_file) if config_file else Path()
    cfg = build_config(_yaml_chain(path, ()) if config_file else (), opts)
    cfg.CONFIG_NAME = cfg.CONFIG_NAME or path.name
    return cfg


def find_config(path: str | Path) -> Path:
    """Return the absolute path of a config file.

    Args:
        path: of the file; or a name that it once had, which ``renamed.json`` in its folder,
            ``{"old.yaml": "new.yaml"}``, knows; or a name of `tagclip.model_zoo`.

    Raises:
        ConfigError: there is no such file and no such name, or the table cannot be read.
    """
    found = _found(path)
    if found is None:
        raise ConfigError(
            f"{path}: no such config file and no name of the model zoo{suggestion(str(path))}"
        )
    return found


def _found(path: str | Path, folder: Path = Path()) -> Path | None:
    """`find_config` from a folder; None if there is nothing."""
    file = _resolved(path, folder)
    if not file.is_file():
        file = Path(current_path(str(file)))
    table = file.parent / _RENAMED
    if not file.is_file() and table.is_file():
        name = str(_read_yaml(table).get(file.name, file.name))
        if name != file.name:
            logging.getLogger(__name__).warning("%s is now called %s; use that name", file, name)
            file = file.with_name(name)
    if file.is_file():
        return file
    try:
        return Path(get_config_file(str(path)))
    except ConfigError:
        return None


def build_config(trees: Iterable[tuple[str | Path, dict]], opts: Sequence[str] = ()) -> CN:
    """Merge (name for messages, nested dict) pairs and command-line overrides into the defaults.

    Raises:
        ConfigError: see `load_config`.
    """
    cfg = get_cfg()
    add_tagclip_config(cfg)
    defaults = dict(_items(cfg))
    check_overrides(opts)
    if len(opts) % 2:
        words = " ".join(map(str, opts))
        raise ConfigError(
            f"command line: found {counted(len(opts), 'word')} after the options ({words}), "
            f"expected KEY VALUE pairs; {_stray_word(opts)}"
        )
    pairs = zip(opts[0::2], opts[1::2], strict=True)
    overrides = (("command line", _nested(key, value)) for key, value in pairs)
    for source, tree in chain(trees, overrides):
        values = dict(_items(tree))
        _check_keys(values, defaults, source)
        for key, value in values.items():
            if not isinstance(value, dict) or not isinstance(defaults[key], CN):
                _merge(cfg, key, value, source)
    # Other paths are expanded by what opens them.
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = map(expand_path, (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS))
    check_config(cfg)
    return cfg


def _stray_word(opts: Sequence[Any]) -> str:
    """What to do about a word that is no half of a pair."""
    for word in map(str, opts):
        key, sign, value = word.partition("=")
        if sign and key.replace(".", "").replace("_", "").isalnum() and key.isupper():
            return f"write {key} {value}"
    for word in map(str, opts[::2]):
        if Path(word).suffix in (".yaml", ".yml"):
            return f"write --config-file {word}"
    return "add the missing key or value"


def check_overrides(opts: Any) -> None:
    """Refuse overrides that are no list of keys and values.

    Raises:
        ConfigError: they are something else.
    """
    if not isinstance(opts, (list, tuple)) or not all(isinstance(key, str) for key in opts[::2]):
        raise ConfigError(
            f"command line: found {opts!r:.80} as overrides, expected a list of keys and values, "
            "such as ['SEED', 1]"
        )


def _merge(cfg: CN, key: str, value: Any, source: str | Path) -> None:
    """Set one key; texts are read as Python's literals, as yacs does."""
    default, found = reduce(getitem, key.split("."), cfg), value
    try:
        if isinstance(value, str):
            found = CN._decode_cfg_value(value)
        if key == _NAME_OR_LIST:
            default = cfg.MODEL.CLIP.TEMPLATES = [] if isinstance(found, (list, tuple)) else ""
        if found is None and default is not None:
            raise TypeError("yacs takes None for every type")
        if isinstance(default, float) and type(found) is int:
            value = float(found)
        is_text = isinstance(default, str) and isinstance(value, str) and key != _NAME_OR_LIST
        if is_text and not isinstance(found, str):
            # The name of a folder may be a number.
            value = repr(value)
        cfg.merge_from_other_cfg(CN(_nested(key, value)))
    except _MISFITS as error:
        shown = "null" if found is None else f"{found!r:.200}"
        expected = expected_value(key, default)
        raise ConfigError(
            f"{source}: {key}: found {shown}, expected {expected}; mend the value"
        ) from error


def _items(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of every key and section of a nested dict."""
    for key, value in tree.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _items(value, f"{prefix}{key}.")


def _nested(key: str, value: Any) -> dict:
    """``"A.B", 1`` -> ``{"A": {"B": 1}}``."""
    return reduce(lambda tree, part: {part: tree}, reversed(key.split(".")), value)


def _check_keys(values: dict[str, Any], known: dict[str, Any], source: str | Path) -> None:
    """Refuse keys that the config does not have, naming the nearest one that it has."""
    for key, value in values.items():
        # Of a section, the keys in it are more to the point.
        if key not in known and not (isinstance(value, dict) and value):
            leaves = (name for name, default in known.items() if not isinstance(default, CN))
            hint = did_you_mean(key, leaves) or "; all keys: python -m tagclip.config.reference"
            shown = key if key.isprintable() else repr(key)
            raise ConfigError(f"{source}: unknown config key {shown}{hint}")


def _yaml_chain(path: Path, visited: tuple[Path, ...]) -> Iterator[tuple[Path, dict]]:
    """Yield (file, its own keys), the deepest ``_BASE_`` first."""
    if path in visited:
        raise ConfigError(f"{path}: _BASE_ leads back to this file; remove the circle")
    tree = _read_yaml(path)
    bases = tree.pop("_BASE_", [])
    bases = bases if isinstance(bases, list) else [bases]
    for base in bases:
        if not isinstance(base, str):
            raise ConfigError(
                f"{path}: found _BASE_ {base!r:.60}, expected the name of a yaml file"
            )
        found = _found(base, path.parent)
        if found is None:
            raise ConfigError(
                f"{path}: _BASE_ leads to {path.parent / expand_path(base)}: no such config file "
                f"and no name of the model zoo{suggestion(base)}"
            )
        yield from _yaml_chain(found, (*visited, path))
    yield path, resolve_paths(tree, path.parent)


def _resolved(path: str | Path, folder: Path) -> Path:
    try:
        file = (folder / expand_path(path)).resolve()
        file.is_file()
    # A folder of nobody, a zero byte, a name longer than any file's.
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"{str(path)!r:.200}: found no config file's name ({error}); check --config-file and "
            "_BASE_"
        ) from error
    return file


def _read_yaml(path: Path) -> dict:
    try:
        tree = load_yaml(read_text_file(path))
    except OSError as error:
        raise ConfigError(
            f"{path}: config file cannot be read ({error.strerror}); check its rights"
        ) from error
    except NotUtf8Error as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValueError as error:
        raise ConfigError(
            f"{path}: not a plain yaml file ({one_line(error)}); "
            "expected keys and values without tags, each key once in its section"
        ) from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: found a {type(tree).__name__}, expected keys and values")
    return tree


def resolve_paths(node: Any, folder: Path, key: str = "") -> Any:
    """Make texts that start with ``./`` or ``../`` paths below a folder (see `load_config`)."""
    if isinstance(node, dict):
        return {k: resolve_paths(v, folder, str(k)) for k, v in node.items()}
    if isinstance(node, list):
        return [resolve_paths(value, folder, key) for value in node]
    if isinstance(node, str) and node.startswith(_RELATIVE) and key not in _CWD_RELATIVE:
        path = folder / node
        # A link to a file keeps its name: the cache of the hub calls the file by its checksum.
        is_link = path.is_symlink() and path.is_file()
        return str(path.parent.resolve() / path.name if is_link else path.resolve())
    return node


def advice_if_relative(path: str) -> str:
    """Return what to add to "check the path"; "" unless it starts with ``./`` or ``../``."""
    if not path.startswith(_RELATIVE):
        return ""
    return f" from {Path.cwd()}, or read the yaml that says so with tagclip.load_config"
