"""Label files whose classes are colours: from colours to label values, exactly, and whether the
colours of a file count or its values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from tagclip.errors import VocabularyError
from tagclip.structures.class_color import RGB
from tagclip.structures.vocabulary import Vocabulary

__all__ = [
    "ColorTable",
    "Pixel",
    "color_bytes",
    "color_table",
    "count_pixels",
    "equal_channels",
    "is_gray",
    "judge_colors",
    "palette_table",
]

# Colour or value; "transparent" for what is not opaque.
Pixel = RGB | int | str

_SHOWN = 5


class ColorTable:
    """Label value of every colour of a list; two colours may have one value.

    One table of all 2^24 colours is asked once per pixel: 16 MB, or 32 MB with values above 255.

    Attributes:
        colors: (N, 3) uint8 RGB.
        values: (N,) int32.
        names: what messages call the N colours.
        unknown: value in `look_up`'s result of pixels of other colours, none of `values`.
        dtype: of `look_up`'s result, uint8 or uint16.
    """

    def __init__(
        self,
        colors: Sequence[Sequence[int]],
        values: Sequence[int],
        names: Sequence[str] = (),
    ) -> None:
        """
        Args:
            colors: N >= 1 times (red, green, blue), 0..255.
            values: N label values, 0..65535.
            names: N names for messages; default: the values.

        Raises:
            VocabularyError: there are no colours, or a colour has two values.
        """
        self.colors = np.array(colors, dtype=np.uint8).reshape(-1, 3)
        self.values = np.array(values, dtype=np.int32)
        self.names = list(names) or list(map(str, self.values.tolist()))
        given: dict[tuple[int, ...], int] = {}
        for color, value, name in zip(
            self.colors.tolist(), self.values.tolist(), self.names, strict=True
        ):
            if given.setdefault(tuple(color), value) != value:
                other = self.names[self.values.tolist().index(given[tuple(color)])]
                raise VocabularyError(
                    f"color {color} is of {other} and of {name}; give one of them another"
                )
        if not given:
            raise VocabularyError("found no color, expected one per class; add them")
        free = set(range(max(given.values()) + 2)) - set(given.values())
        # 255 in most cases, so that bytes are enough.
        self.unknown = min(free, key=lambda value: (value > 255, -value))
        self.dtype = np.uint8 if max(self.unknown, *given.values()) <= 255 else np.uint16
        self._table = np.full(1 << 24, self.unknown, self.dtype)
        self._table[_packed(self.colors[None])[0]] = self.values

    def look_up(self, rgb: np.ndarray) -> np.ndarray:
        """Values of the pixels.

        Args:
            rgb: (H, W, 3) uint8.

        Returns:
            (H, W) `dtype`; `unknown` where the colour is not in the list.
        """
        return self._table[_packed(rgb)]

    def unknown_colors(self, rgb: np.ndarray) -> dict[Pixel, int]:
        """Number of pixels of every colour that is not in the list, most first."""
        return count_pixels(rgb[self.look_up(rgb) == self.unknown])

    def nearest(self, color: Sequence[int]) -> int:
        """Place in the list of the colour with the smallest Euclidean distance in RGB."""
        distance = ((self.colors.astype(np.int32) - np.array(color, np.int32)) ** 2).sum(axis=1)
        return int(distance.argmin())

    def unknown_text(self, rgb: np.ndarray) -> str:
        """What is wrong with an image of unknown colours, and what to do: five, with pixels and the
        nearest known one."""
        unknown = self.unknown_colors(rgb)
        texts = []
        for color, pixels in list(unknown.items())[:_SHOWN]:
            place = self.nearest(color)
            texts.append(
                f"{list(color)} ({pixels} pixels, nearest is {self.colors[place].tolist()} of "
                f"{self.names[place]})"
            )
        more = f", and {len(unknown) - _SHOWN} more" * (len(unknown) > _SHOWN)
        remedy = 'add them in the vocabulary json, as "color" of a class or "ignore_color"'
        if len(unknown) > len(self.colors):
            remedy = (
                "the file was resized, smoothed or compressed with loss: write it again without "
                "that, from its source"
            )
        number = f"{len(unknown)} unknown colour{'s' * (len(unknown) != 1)}"
        return f"{number}: {', '.join(texts)}{more}; {remedy}"


def _packed(rgb: np.ndarray) -> np.ndarray:
    """(H, W) uint32: red + 256 green + 65536 blue."""
    rgba = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2RGBA)
    return rgba.view("<u4")[..., 0] & np.uint32(0xFFFFFF)


def count_pixels(pixels: np.ndarray) -> dict[Pixel, int]:
    """Count pixels by value or colour, the most frequent first.

    Args:
        pixels: (N,) integers, or (N, 3 or 4) uint8; those that are not opaque count as one.
    """
    is_value = pixels.ndim == 1
    counts: dict[Pixel, int] = {}
    if not is_value and pixels.shape[1] == 4:
        opaque = pixels[:, 3] == 255
        if not opaque.all():
            counts["transparent"] = int((~opaque).sum())
            pixels = pixels[opaque]
    codes = pixels if is_value else pixels[:, :3].astype(np.int32) @ np.array([65536, 256, 1])
    # Labels come in runs: these are few, pixels are many.
    starts = np.flatnonzero(np.diff(codes, prepend=codes[:1] ^ 1) != 0)
    lengths = np.diff(starts, append=len(codes))
    values, index = np.unique(codes[starts], return_inverse=True)
    sums = np.bincount(index, lengths, len(values)).astype(np.int64)
    for code, number in zip(values.tolist(), sums.tolist(), strict=True):
        key = code if is_value else (code >> 16, code >> 8 & 255, code & 255)
        counts[key] = number
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


@lru_cache(maxsize=8)
def color_table(vocabulary: Vocabulary) -> ColorTable | None:
    """The colours that a vocabulary gives to classes and to unlabelled pixels; None without any.

    Raises:
        VocabularyError: two classes have one colour.
    """
    rows = [(e.color, e.id, repr(e.name)) for e in vocabulary.classes if e.color is not None]
    if not rows:
        return None
    rows += [(color, vocabulary.ignore_label, "unlabelled") for color in vocabulary.ignore_colors]
    try:
        return ColorTable(*zip(*rows, strict=True))
    except VocabularyError as error:
        raise VocabularyError(f"vocabulary {vocabulary.name!r}: {error}") from error


def judge_colors(
    by_value: np.ndarray,
    has_value: np.ndarray,
    by_color: np.ndarray,
    has_color: np.ndarray,
    ignored: int,
    is_gray: bool,
) -> tuple[bool, np.ndarray]:
    """Judge what the pixels of a file are that has values and colours, if nobody says which.

    They are values, unless some mean nothing and all colours something. Where both could be meant
    and disagree, neither counts. A gray file is one of values as long as all have a class or lack
    it as colours, too.

    Args:
        by_value: (H, W) integers, the meanings of the values.
        has_value: (H, W) bool, False where a value means nothing.
        by_color, has_color: the same of the colours.
        ignored: meaning of ignored pixels.
        is_gray: whether colours are nothing but the values in three channels, of a file of one.

    Returns:
        Whether the colours count; and (H, W) bool, where values and colours disagree: with any,
        the file has to be refused.
    """
    differ = has_color & (~has_value | (by_value != by_color))
    all_colors = bool(has_color.all())
    if is_gray and not (all_colors and (differ & (~has_value | (by_value == ignored))).any()):
        return False, np.zeros_like(differ)
    if not has_value.all():
        return all_colors, np.zeros_like(differ)
    return False, differ


def equal_channels(values: np.ndarray) -> np.ndarray | None:
    """The one channel of a gray image that is stored as colours; None if the channels differ.

    Args:
        values: (H, W, 3 or 4) uint8 or uint16, alpha does not count.

    Returns:
        (H, W) uint8 or int32.
    """
    red, green, blue = (values[..., channel] for channel in range(3))
    if not (np.array_equal(red, green) and np.array_equal(red, blue)):
        return None
    return np.ascontiguousarray(red) if red.dtype == np.uint8 else red.astype(np.int32)


def color_bytes(values: np.ndarray) -> np.ndarray | None:
    """Colours (H, W, C) as uint8; None for those of 16 bits that 8 cannot say."""
    if values.dtype == np.uint8:
        return values
    return None if (values % 257).any() else (values // 257).astype(np.uint8)


def palette_table(palette: np.ndarray | None) -> np.ndarray:
    """(256, 3) uint8, the colours of all indices, or gray values without a palette.

    Indices behind the end of a palette are shown as gray, as Pillow does.
    """
    table = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    if palette is not None:
        table[: len(palette)] = palette[:256]
    return table


def is_gray(palette: np.ndarray | None) -> bool:
    """Whether a palette shows the indices themselves, as a gray file does, which has none."""
    return palette is None or bool((palette == np.arange(len(palette))[:, None]).all())
