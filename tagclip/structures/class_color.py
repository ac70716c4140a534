"""Colour of a class by its name alone: the same whatever the list, its order or the picture.

A name that holds the name of a colour (one word or several: "green board", "dark red car", "sand")
gets that colour or a shade of it. Other names get one of 128 colours that lie as far apart as
possible. Distances are Euclidean in OKLab (https://bottosson.github.io/posts/oklab).
"""

from __future__ import annotations

import hashlib
import re
from functools import cache

import numpy as np
from matplotlib.colors import CSS4_COLORS, XKCD_COLORS, to_rgb

from tagclip.utils.class_names import name_key

__all__ = ["RGB", "alike_colors", "name_color"]

RGB = tuple[int, int, int]

_COUNT = 128
# Closer colours are hard to tell apart in a picture; those of the palette are 0.07 apart.
_ALIKE = 0.045
# With this number, all classes of VOC and all of MiniBench can be told apart by name.
_SALT = 304136
# Gray that a named colour is mixed with, and its share.
_SHADES = ((0, 0.0), (255, 0.4), (255, 0.65), (0, 0.25), (0, 0.5), (190, 0.5))
# "water" is no colour, but "water blue" is.
_HUES = ("blue", "green", "brown", "yellow", "red", "orange", "pink", "purple")
# sRGB, linear, to the cone responses of OKLab, and their cube roots to OKLab.
_TO_CONES = np.array([
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
])  # fmt: skip
_TO_LAB = np.array([
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
])  # fmt: skip


@cache
def name_color(name: str) -> RGB:
    """(red, green, blue), each 0..255, of a class; case, spacing and hyphens do not count."""
    words = re.findall(r"[^\W_]+", name_key(name))
    digest = hashlib.sha256(f"{_SALT}{''.join(words)}".encode()).digest()
    number = int.from_bytes(digest[:8], "big")
    named = _named_colors()
    for length in range(len(words), 0, -1):
        for start in range(len(words) - length + 1):
            color = named.get(" ".join(words[start : start + length]))
            if color is not None:
                gray, share = _SHADES[number % len(_SHADES) if length < len(words) else 0]
                mixed = np.array(to_rgb(color)) * 255 * (1 - share) + gray * share
                return tuple(int(value) for value in np.rint(mixed))
    return _palette()[number % _COUNT]


def alike_colors(colors: np.ndarray) -> np.ndarray:
    """Which colours are hard to tell from another one.

    Args:
        colors: (K, 3) uint8 RGB.

    Returns:
        (K,) bool.
    """
    lab = _oklab(colors)
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1)
    np.fill_diagonal(distances, np.inf)
    return (distances < _ALIKE).any(axis=1)


@cache
def _named_colors() -> dict[str, str]:
    """Hex colours by name; those of the xkcd colour survey come first, CSS adds some."""
    survey = {name.removeprefix("xkcd:"): color for name, color in XKCD_COLORS.items()}
    pairs = [(name.split(), color) for name, color in survey.items()]
    things = {w[0]: color for w, color in pairs[::-1] if len(w) == 2 and w[1] in _HUES}
    return things | CSS4_COLORS | survey


@cache
def _palette() -> list[RGB]:
    """Colours of medium lightness, each as far as possible from those before it."""
    levels = np.arange(0, 256, 15)
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _oklab(colors)
    inside = (lab[:, 0] > 0.35) & (lab[:, 0] < 0.95)
    colors, lab = colors[inside], lab[inside]
    chosen = [int(np.hypot(lab[:, 1], lab[:, 2]).argmax())]
    distances = np.full(len(lab), np.inf)
    while len(chosen) < _COUNT:
        # Rounded: the same on every machine.
        distances = np.minimum(distances, np.linalg.norm(lab - lab[chosen[-1]], axis=1).round(9))
        chosen.append(int(distances.argmax()))
    return [tuple(map(int, color)) for color in colors[chosen]]


def _oklab(colors: np.ndarray) -> np.ndarray:
    """(N, 3) sRGB, 0..255, as lightness, green to red, blue to yellow."""
    values = np.asarray(colors, dtype=float) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T
