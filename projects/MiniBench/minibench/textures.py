"""Random numbers, colours and patterns in integers: the same pixels on every platform.

Lengths are fixed point with 8 fractional bits (256 units per pixel), angles run from 0 to
`TURN`, sines are scaled by ``2**14``.
"""

from __future__ import annotations

import numpy as np

__all__ = ["TURN", "UNIT", "Stream", "cosine", "hsv", "noun_texture", "sine", "stuff_texture"]

UNIT = 256
TURN = 8192
_SINE = np.rint(np.sin(np.arange(TURN) * (2 * np.pi / TURN)) * 2**14).astype(np.int64)

NOUNS = ("ball", "flag", "fence", "dice", "board")
HUES = {"red": 0, "yellow": 55, "green": 125, "blue": 225}
STUFF = {
    "sand": (195, 175, 135),
    "water": (95, 130, 150),
    "brick": (135, 95, 85),
    "stone": (125, 125, 125),
}


class Stream:
    """Integers from PCG64's raw output, whose stream numpy never changes."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))

    def integers(self, low: int, high: int, size: tuple[int, ...] = ()) -> np.ndarray:
        """Uniform integers in [low, high], both included; int64 of the given shape."""
        count = int(np.prod(size, dtype=np.int64))
        raw = np.atleast_1d(np.asarray(self._bits.random_raw(count), dtype=np.uint64))
        value = (raw >> np.uint64(32)) * np.uint64(high - low + 1) >> np.uint64(32)
        return (value.astype(np.int64) + low).reshape(size)

    def integer(self, low: int, high: int) -> int:
        """One uniform integer in [low, high]."""
        return int(self.integers(low, high))

    def chance(self, percent: int) -> bool:
        """True in ``percent`` of 100 cases."""
        return self.integer(0, 99) < percent

    def normal(self, sigma: int, size: tuple[int, ...] = ()) -> np.ndarray:
        """Nearly normal integers: 12 uniforms have variance 1 (in units of ``sigma``)."""
        total = self.integers(0, 65535, (*size, 12)).sum(axis=-1) - 6 * 65535
        return total * sigma // 65536


def sine(angle: np.ndarray | int) -> np.ndarray:
    """2**14 sin of an angle in units of 1 / `TURN`."""
    return _SINE[np.asarray(angle) & (TURN - 1)]


def cosine(angle: np.ndarray | int) -> np.ndarray:
    """2**14 cos of an angle in units of 1 / `TURN`."""
    return sine(np.asarray(angle) + TURN // 4)


def hsv(hue: int, saturation: int, value: int) -> np.ndarray:
    """Return (3,) RGB in 0..255 for a hue in degrees, saturation and value in 0..255."""
    hue %= 360
    chroma = value * saturation // 255
    second = chroma * (60 - abs(hue % 120 - 60)) // 60
    base = value - chroma
    ordered = [
        (chroma, second, 0),
        (second, chroma, 0),
        (0, chroma, second),
        (0, second, chroma),
        (second, 0, chroma),
        (chroma, 0, second),
    ][hue // 60]
    return np.array(ordered, dtype=np.int64) + base


def _rotated(size: int, angle: int) -> tuple[np.ndarray, np.ndarray]:
    """(size, size) coordinates of pixel centres in a frame turned by ``angle``."""
    y, x = np.mgrid[:size, :size] * UNIT + UNIT // 2
    c, s = cosine(angle), sine(angle)
    return (x * c + y * s) >> 14, (y * c - x * s) >> 14


def _shading(stream: Stream, size: int) -> np.ndarray:
    """(size, size) smooth wave of amplitude 5 to 22."""
    y, x = np.mgrid[:size, :size]
    step_x, step_y = stream.integer(-200, 200), stream.integer(-200, 200)
    wave = sine(x * step_x + y * step_y + stream.integer(0, TURN - 1))
    return stream.integer(5, 22) * wave >> 14


def noun_mask(stream: Stream, noun: str, size: int) -> np.ndarray:
    """(size, size) bool: where the noun's pattern puts its mark."""
    # Rotation of 0.05 rad: 65 of 8192 units.
    u, v = _rotated(size, int(stream.normal(65)))
    period = stream.integer(55 * UNIT // 10, 62 * UNIT // 10)
    u = u + stream.integer(0, period - 1)
    v = v + stream.integer(0, period - 1)
    if noun == "ball":
        return np.zeros((size, size), dtype=bool)
    if noun == "flag":
        return v % period < 42 * period // 100
    if noun == "fence":
        return u % period < 42 * period // 100
    if noun == "dice":
        du, dv = u % period - period // 2, v % period - period // 2
        return du * du + dv * dv <= (33 * period // 100) ** 2
    cell = 62 * period // 100
    return (u // cell + v // cell) % 2 == 0


def noun_texture(stream: Stream, noun: str, hue: int, size: int) -> np.ndarray:
    """(size, size, 3) int64 texture of a thing: its colour, shading and pattern."""
    hue = hue + int(stream.normal(6 * 256)) // 256
    color = hsv(hue, stream.integer(153, 242), stream.integer(178, 255))
    texture = np.broadcast_to(color, (size, size, 3)) + _shading(stream, size)[..., None]
    contrast = stream.integer(15, 45) * 6 // 10
    dark = color * 15 // 100 + contrast
    mark = np.full(3, 245 - contrast) if noun in ("fence", "dice") else dark
    return np.where(noun_mask(stream, noun, size)[..., None], mark, texture)


def stuff_texture(stream: Stream, name: str, size: int) -> np.ndarray:
    """(size, size, 3) int64 texture of a muted surface."""
    y, x = np.mgrid[:size, :size]
    phase_x, phase_y = stream.integer(0, 63), stream.integer(0, 63)
    x, y = x + phase_x, y + phase_y
    if name == "sand":
        relief = stream.integers(-26, 26, (size, size))
    elif name == "water":
        wobble = sine(x * stream.integer(150, 260)) * 600 >> 14
        relief = sine(y * stream.integer(1000, 1300) + wobble) * 24 >> 14
    elif name == "brick":
        row, shifted = y // 6, x + 6 * (y // 6 % 2)
        mortar = (y % 6 == 0) | (shifted % 12 == 0)
        relief = np.where(mortar, 55, row * 37 % 13 + shifted // 12 * 17 % 11 - 12)
    else:
        total = sum(
            sine(x * stream.integer(-1100, 1100) + y * stream.integer(-1100, 1100))
            for _ in range(4)
        )
        relief = np.where(total > 0, 24, -24)
    return np.array(STUFF[name]) + relief[..., None] + _shading(stream, size)[..., None] // 2


def clutter_texture(stream: Stream, size: int) -> np.ndarray:
    """(size, size, 3) int64 texture that belongs to no class: other hues, other patterns."""
    hue = (290, 25, 175, 325)[stream.integer(0, 3)]
    color = hsv(hue, stream.integer(60, 170), stream.integer(120, 230))
    y, x = np.mgrid[:size, :size]
    step = stream.integer(700, 1100)
    kind = stream.integer(0, 2)
    if kind == 0:
        wave = sine((x + y) * step)
    elif kind == 1:
        dx, dy = x - stream.integer(0, size), y - stream.integer(0, size)
        radius = np.sqrt((dx * dx + dy * dy) * 65536.0).astype(np.int64)
        wave = sine(radius * step // 256)
    else:
        wave = (sine((x + 2 * y) * step // 2) + sine((2 * x - y) * step // 2)) // 2
    relief = stream.integer(10, 40) * wave >> 14
    return color + relief[..., None] + _shading(stream, size)[..., None]
