"""Text on pictures: matplotlib's renderer for a line alone, and no figure around it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties

from tagclip.utils.text import utf8_text
from tagclip.visualization.fonts import families

__all__ = ["Line", "line_of_text"]

# A point is a pixel.
_DPI = 72
# No page is wider; matplotlib draws up to twice that.
_WIDEST = 1 << 15


@dataclass(frozen=True)
class Line:
    """A line of text that can be drawn anywhere.

    Attributes:
        width: in pixels.
        above: from its upper end down to the base line, at least that of a high letter, in pixels.
        below: from the base line to its lower end, at least that of a low letter, in pixels.
        coverage: (h, w) uint8: how much of a pixel is text, 255 for all of it.
        base: (x, y) in ``coverage`` where the base line begins.
    """

    width: int
    above: int
    below: int
    coverage: np.ndarray
    base: tuple[int, int]

    def draw(self, page: np.ndarray, x: float, y: float, gray: int = 0) -> None:
        """Draw onto a page; what is outside of it is cut off.

        Args:
            page: (H, W, 3) uint8, changed in place.
            x, y: in pixels, where the base line begins.
            gray: of the text, 0 to 255.
        """
        left, top = round(x) - self.base[0], round(y) - self.base[1]
        cover = self.coverage[max(0, -top) :, max(0, -left) :, None].astype(np.uint16)
        part = page[max(0, top) :, max(0, left) :][: cover.shape[0], : cover.shape[1]]
        cover = cover[: part.shape[0], : part.shape[1]]
        part[:] = (part * (255 - cover) + gray * cover + 127) // 255


def line_of_text(text: str, size: float, bold: bool = False, italic: bool = False) -> Line:
    """Set a line in fonts that have its letters, see `families`.

    Args:
        text: of one line; what is no UTF-8 in it, as in names of files, is escaped.
        size: of the font, in pixels.
        bold, italic: as far as the fonts have it.
    """
    text = utf8_text(text)
    return _line(text, tuple(families(text)), size, bold, italic)


# Titles and names are the same on many pictures.
@lru_cache(maxsize=1024)
def _line(text: str, fonts: tuple[str, ...], size: float, bold: bool, italic: bool) -> Line:
    style, weight = ("italic" if italic else "normal"), ("bold" if bold else "normal")
    font = FontProperties(family=list(fonts), size=size, style=style, weight=weight)
    measure = RendererAgg(1, 1, _DPI).get_text_width_height_descent
    (width, height, low), (_, high, lowest) = (measure(s, font, False) for s in (text, "lp"))
    above, below = max(height - low, high - lowest), max(low, lowest)
    # Slanted letters, and those of odd fonts, reach further.
    margin = math.ceil(size / 2)
    base = (margin, margin + math.ceil(above))
    canvas = (min(math.ceil(width) + 2 * margin, _WIDEST), base[1] + math.ceil(below) + margin)
    renderer = RendererAgg(*canvas, _DPI)
    renderer.draw_text(renderer.new_gc(), *base, text, font, 0)
    coverage = np.array(renderer.buffer_rgba())[..., 3]
    return Line(math.ceil(width), math.ceil(above), math.ceil(below), coverage, base)
