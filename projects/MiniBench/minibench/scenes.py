"""Scenes of overlapping things on stuff, with or without unlabelled clutter."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tagclip.projects.minibench.textures import (
    HUES,
    NOUNS,
    STUFF,
    TURN,
    UNIT,
    Stream,
    clutter_texture,
    cosine,
    noun_texture,
    sine,
    stuff_texture,
)

__all__ = ["CLASSES", "VOID", "Scene", "crop_scene", "draw_scene", "pair_scene"]

CLASSES = tuple(f"{color} {noun}" for noun in NOUNS for color in HUES) + tuple(STUFF)
VOID = 255
_THINGS = len(NOUNS) * len(HUES)
# Exponents of the shapes' outline: 64 steps, evenly spaced in the logarithm from 1.3 to 5.
_EXPONENTS = np.geomspace(1.3, 5.0, 64)


@dataclass(frozen=True)
class Scene:
    """An image and what it shows.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        label: (size, size) uint8, index into `CLASSES`, `VOID` on boundaries and clutter.
        clutter: (size, size) bool, pixels of no class at all.
    """

    image: np.ndarray
    label: np.ndarray
    clutter: np.ndarray


@lru_cache(maxsize=64)
def _powers(exponent: int) -> np.ndarray:
    """2**16 (r / 256)^p for r in 0..511."""
    return np.floor((np.arange(512) / 256) ** _EXPONENTS[exponent] * 65536).astype(np.int64)


def _blob(stream: Stream, size: int, radius: int, center: tuple[int, int]) -> np.ndarray:
    """(size, size) bool: a rotated superellipse |u|^p + |v|^p <= 1; lengths in pixels."""
    angle = stream.integer(0, TURN - 1)
    y, x = np.mgrid[:size, :size] * UNIT + UNIT // 2
    dx, dy = x - center[0] * UNIT, y - center[1] * UNIT
    c, s = cosine(angle), sine(angle)
    u, v = np.abs(dx * c + dy * s) >> 14, np.abs(dy * c - dx * s) >> 14
    aspect = stream.integer(218, 302)
    powers = _powers(stream.integer(0, len(_EXPONENTS) - 1))
    r_u = np.minimum(u * UNIT // (radius * aspect), 511)
    r_v = np.minimum(v * aspect // (radius * UNIT), 511)
    return powers[r_u] + powers[r_v] <= 65536


def _second_region(stream: Stream, size: int) -> np.ndarray:
    """(size, size) bool: one side of a wavy line through the image."""
    angle = stream.integer(0, TURN - 1)
    y, x = np.mgrid[:size, :size] - size // 2
    along = (x * cosine(angle) + y * sine(angle)) >> 14
    across = (y * cosine(angle) - x * sine(angle)) >> 14
    wave = sine(along * stream.integer(60, 200)) * (size // 12) >> 14
    return across > wave + stream.integer(-size // 4, size // 4)


def _boundaries(label: np.ndarray) -> np.ndarray:
    """(size, size) bool: pixels beside another label."""
    edge = np.zeros(label.shape, dtype=bool)
    vertical, horizontal = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
    edge[1:] |= vertical
    edge[:-1] |= vertical
    edge[:, 1:] |= horizontal
    edge[:, :-1] |= horizontal
    return edge


class _Canvas:
    """A scene in the making."""

    def __init__(self, stream: Stream, size: int, second_stuff: int) -> None:
        self.stream, self.size = stream, size
        stuff = tuple(STUFF)
        first, second = stream.integer(0, 3), stream.integer(0, 3)
        self.pixels = stuff_texture(stream, stuff[first], size)
        self.label = np.full((size, size), _THINGS + first)
        if stream.chance(second_stuff):
            mask = _second_region(stream, size)
            self.paint(mask, stuff_texture(stream, stuff[second], size), _THINGS + second)

    def paint(self, mask: np.ndarray, texture: np.ndarray, label: int) -> None:
        self.pixels = np.where(mask[..., None], texture, self.pixels)
        self.label[mask] = label

    def blob(self, low: int, high: int) -> np.ndarray:
        """A blob with a radius from [low, high], its centre inside the image."""
        radius, margin = self.stream.integer(low, high), self.size // 8
        center = (
            self.stream.integer(margin, self.size - margin),
            self.stream.integer(margin, self.size - margin),
        )
        return _blob(self.stream, self.size, radius, center)

    def thing(self, index: int, mask: np.ndarray) -> None:
        noun, hue = NOUNS[index // len(HUES)], tuple(HUES.values())[index % len(HUES)]
        self.paint(mask, noun_texture(self.stream, noun, hue, self.size), index)

    def clutter(self) -> None:
        """Unlabelled background: a blob or two, sometimes a whole region."""
        if self.stream.chance(30):
            self.paint(
                _second_region(self.stream, self.size),
                clutter_texture(self.stream, self.size),
                len(CLASSES),
            )
        else:
            for _ in range(self.stream.integer(1, 2)):
                mask = self.blob(20, 32)
                self.paint(mask, clutter_texture(self.stream, self.size), len(CLASSES))

    def finish(self) -> Scene:
        gain = self.stream.integer(88 * 256 // 100, 110 * 256 // 100)
        noise = self.stream.normal(6, self.pixels.shape)
        image = np.clip(self.pixels * gain // 256 + noise, 0, 255).astype(np.uint8)
        clutter = self.label == len(CLASSES)
        void = clutter | _boundaries(self.label)
        return Scene(image, np.where(void, VOID, self.label).astype(np.uint8), clutter)


def draw_scene(stream: Stream, size: int = 96) -> Scene:
    """Draw a segmentation image: stuff, clutter, then 2 to 4 overlapping things."""
    canvas = _Canvas(stream, size, second_stuff=50)
    canvas.clutter()
    for _ in range(stream.integer(2, 4)):
        canvas.thing(stream.integer(0, _THINGS - 1), canvas.blob(16, 28))
    return canvas.finish()


def pair_scene(stream: Stream, size: int = 32) -> Scene:
    """Draw an image for CLIP's training: 0, 1 or 2 things on stuff, no clutter."""
    canvas = _Canvas(stream, size, second_stuff=20)
    draw = stream.integer(0, 99)
    count = 0 if draw < 10 else 1 if draw < 75 else 2
    for _ in range(count):
        canvas.thing(stream.integer(0, _THINGS - 1), canvas.blob(8, 20 if count == 1 else 14))
    return canvas.finish()


def crop_scene(stream: Stream, class_index: int, size: int = 32) -> Scene:
    """Draw one class large, for measuring zero-shot accuracy."""
    canvas = _Canvas(stream, size, second_stuff=0)
    if class_index < _THINGS:
        center = size // 2
        canvas.thing(class_index, _blob(stream, size, stream.integer(12, 18), (center, center)))
    else:
        name = tuple(STUFF)[class_index - _THINGS]
        canvas.paint(
            np.ones((size, size), dtype=bool), stuff_texture(stream, name, size), class_index
        )
    return canvas.finish()
