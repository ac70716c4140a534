"""What model.json says, looked through: it has no checksum, and a wrong number is a wrong label."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tagclip.errors import ConfigError
from tagclip.utils.text import shortened

__all__ = ["FORMAT", "check_recipe", "label_values"]

# Of model.json, which `tagclip.export.recipe` writes.
FORMAT = 1
# Of a 16-bit label file.
_LARGEST = 65535


def check_recipe(recipe: Mapping[str, Any], path: Path) -> None:
    """Check all that decides about labels, but for what the graph alone tells.

    Args:
        recipe: content of model.json.
        path: the file, for messages.

    Raises:
        ConfigError: a value is not as `tagclip export` writes it.
    """
    # An earlier version did not say.
    if (found := recipe.get("format", FORMAT)) is True or found != FORMAT:
        remedy = "; run it with the version that wrote it, or export again"
        _refuse(path, "format", found, f"{FORMAT}, which this version reads", remedy)
    _check_classes(recipe, path)
    order, threshold = recipe["channel_order"], recipe["background_threshold"]
    if order not in ("RGB", "BGR"):
        _refuse(path, "channel_order", order, "RGB or BGR")
    if threshold is not None and not _is_number(threshold):
        _refuse(path, "background_threshold", threshold, "a number or null")
    _check_sizes(recipe["resize"], recipe["windows"], path)


def _check_classes(recipe: Mapping[str, Any], path: Path) -> None:
    names = recipe["class_names"]
    if not (_is_list(names, _is_text) and names and len(set(names)) == len(names)):
        _refuse(path, "class_names", names, "a list of different texts, one or more")
    # An earlier version had neither.
    if {"class_ids", "ignore_label"} & recipe.keys():
        ids, ignored = recipe.get("class_ids"), recipe.get("ignore_label")
        if not (_is_list(ids, _is_label) and len(set(ids)) == len(ids) == len(names)):
            expected = f"{len(names)} different numbers in 0..{_LARGEST}, one per class name"
            _refuse(path, "class_ids", ids, expected)
        if not _is_label(ignored) or ignored in ids:
            _refuse(path, "ignore_label", ignored, f"a number in 0..{_LARGEST}, no class's id")


def _check_sizes(resize: Mapping[str, Any], windows: Mapping[str, Any], path: Path) -> None:
    for key in ("short_side", "long_side"):
        if not (_is_int(resize[key]) and resize[key] >= 0):
            _refuse(path, f"resize.{key}", resize[key], "a number of pixels, or 0")
    way = resize["library"], resize.get("interpolation", "bilinear")
    if way not in (("pil", "bilinear"), ("pil", "bicubic"), ("cv2", "bilinear")):
        _refuse(path, "resize", " ".join(map(str, way)), "pil or cv2 bilinear, or pil bicubic")
    size, stride = windows["size"], windows["stride"]
    if (size, stride) != (None, None):
        pairs = all(_is_list(each, _is_int) and len(each) == 2 for each in (size, stride))
        # A longer stride would leave pixels out.
        if not (pairs and all(1 <= s <= w for s, w in zip(stride, size, strict=True))):
            found = f"size {size}, stride {stride}"
            _refuse(path, "windows", found, "pixels of two sides, the stride not longer, or nulls")


def label_values(recipe: Mapping[str, Any]) -> list[int]:
    """Values of the K classes in label files, and that of no class, which comes last.

    Args:
        recipe: see `check_recipe`.
    """
    count = len(recipe["class_names"])
    # An earlier version named none.
    ids = recipe.get("class_ids", range(count))
    return [*ids, recipe.get("ignore_label", 255 if count <= 255 else _LARGEST)]


def _refuse(
    path: Path, key: str, found: object, expected: str, remedy: str = "; export again"
) -> None:
    text = shortened(found if isinstance(found, str) else repr(found), 200)
    raise ConfigError(f"{path}: found {key} {text}, expected {expected}{remedy}")


def _is_list(value: object, is_item: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(map(is_item, value))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return (_is_int(value) or isinstance(value, float)) and math.isfinite(value)


def _is_label(value: object) -> bool:
    return _is_int(value) and 0 <= value <= _LARGEST
