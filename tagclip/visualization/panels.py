"""Pages of pictures: panels with titles, legend of classes, scale of the trusty map, PNG files.

Pages are (H, W, 3) uint8 RGB arrays on white.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import write_atomic
from tagclip.utils.png_notes import png_with_notes
from tagclip.visualization.fonts import families
from tagclip.visualization.raster_text import Line, line_of_text
from tagclip.visualization.segments import (
    UNSEEN_MARK,
    colorize_labels,
    colorize_trusty,
    legend_names,
    numbers,
)

__all__ = [
    "HATCHED_NOTE",
    "draw_heading",
    "draw_legend",
    "draw_panels",
    "draw_trusty_bar",
    "encode_jpeg",
    "fit",
    "legend_notes",
    "save_png",
    "stack_pictures",
]

# By the flags of the vocabulary; whose masks trained a model is in its provenance.
_UNSEEN_NOTE = f"{UNSEEN_MARK} counts as unseen"
_UNLABELLED_NOTE = "unlabelled pixels are not evaluated"
HATCHED_NOTE = f"{_UNLABELLED_NOTE}: predictions there are hatched"
_NUMBER_NOTE = "a number tells classes of nearly the same colour apart"
_MARGIN = 10
_LINE = 20
# Height of text in pixels.
_FONT = 12.5
# From the upper end of a line to its base, in pixels.
_ASCENT = 12
# The thinnest strip of pixels that can still be looked at.
_THINNEST = 24
# A quarter of the time of the default; run lengths keep pages of photos about as small.
_FAST = {"compress_level": 1, "compress_type": zlib.Z_RLE}


def fit(picture: np.ndarray, size: int) -> np.ndarray:
    """Give the longer side ``size`` pixels.

    Args:
        picture: (H, W) labels or probabilities, which are repeated or left out, or (H, W, 3) uint8
            colours: a pixel becomes the mean of the area that it covers.
        size: in pixels. The shorter side of a thin strip is stretched to 24 pixels, at most to
            ``size``.
    """
    longer = max(picture.shape[:2])
    height, width = (max(round(n * size / longer), min(size, _THINNEST)) for n in picture.shape[:2])
    if picture.ndim == 3:
        return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    rows, columns = (
        (np.arange(shown) * n + n // 2) // shown
        for shown, n in zip((height, width), picture.shape, strict=True)
    )
    return picture[rows][:, columns]


def draw_legend(
    vocabulary: Vocabulary,
    width: int,
    classes: Iterable[int] | None = None,
    unlabelled: bool = True,
    outside: tuple[str, str] = ("unlabelled", _UNLABELLED_NOTE),
) -> np.ndarray:
    """List classes with their colours, unseen ones starred and bold.

    Args:
        vocabulary: K classes.
        width: of the result in pixels; its height follows.
        classes: indices to list; None lists all.
        unlabelled: whether to list the hatch of unlabelled pixels, too.
        outside: name of hatched pixels, and the note on them.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    chosen = range(len(vocabulary)) if classes is None else list(classes)
    names, seen = legend_names(vocabulary), vocabulary.seen or (True,) * len(vocabulary)
    # One look for all.
    families("".join(names))
    entries = [(k, names[k], seen[k]) for k in chosen]
    notes = legend_notes(vocabulary, chosen)
    if unlabelled:
        entries.append((-1, outside[0], True))
        notes += [outside[1]] * bool(outside[1])
    lines = [_line(name, bold=not flag) for _, name, flag in entries]
    column = 45 + max((line.width for line in lines), default=0)
    columns = max(1, (width - _MARGIN) // column)
    rows = -(-len(entries) // columns)
    below = _wrap("; ".join(notes), width, italic=True)
    page = _blank(width, _LINE * (rows + len(below)) + _MARGIN)
    swatches = [*vocabulary.colors, colorize_labels(np.full((13, 21), -1), vocabulary)]
    for i, line in enumerate(below):
        _write(page, line, _MARGIN, (rows + i) * _LINE + 8)
    for i, ((k, _, _), line) in enumerate(zip(entries, lines, strict=True)):
        x, y = _MARGIN + i // rows * (width // columns), i % rows * _LINE + 4
        page[y : y + 15, x : x + 23] = 0
        page[y + 1 : y + 14, x + 1 : x + 22] = swatches[k]
        _write(page, line, x + 30, y)
    return page


def legend_notes(vocabulary: Vocabulary, classes: Sequence[int] | None = None) -> list[str]:
    """Say what the stars and numbers in a legend are.

    Args:
        vocabulary: K classes.
        classes: indices of those that the legend lists; None: all.
    """
    chosen = range(len(vocabulary)) if classes is None else classes
    seen = vocabulary.seen or (True,) * len(vocabulary)
    notes = [_UNSEEN_NOTE] * (not all(seen[k] for k in chosen))
    return notes + [_NUMBER_NOTE] * (not numbers(vocabulary).keys().isdisjoint(chosen))


def draw_trusty_bar(width: int, low: str = "0: unseen", high: str = "1: seen") -> np.ndarray:
    """Scale of `colorize_trusty` with its ends named: (38, width, 3) uint8 RGB."""
    page = _blank(width, 38)
    page[4:16] = colorize_trusty(np.linspace(0, 1, width))
    for text, place in ((low, 0.0), ("0.5", 0.5), (high, 1.0)):
        line = _line(text)
        _write(page, line, place * (width - line.width), 19)
    return page


def draw_heading(title: str, lines: Sequence[str], width: int) -> np.ndarray:
    """Write a bold title and lines below it, broken where they are too long.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    rows = _wrap(title, width, bold=True)
    rows += [row for text in lines for row in _wrap(text, width)]
    page = _blank(width, _LINE * len(rows) + _MARGIN)
    for i, line in enumerate(rows):
        _write(page, line, _MARGIN, i * _LINE + 6)
    return page


def draw_panels(
    rows: Sequence[Sequence[np.ndarray | None]],
    column_titles: Sequence[str],
    row_titles: Sequence[str] = (),
) -> np.ndarray:
    """Set pictures side by side, with a title above each column and, in bold, above each row.

    Args:
        rows: (h, w, 3) uint8 pictures; None leaves a place empty.
        column_titles: one per column.
        row_titles: of the first rows; the others have none.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(p.shape[1] for p in column if p is not None) for column in columns]
    heights = [max(p.shape[0] for p in row if p is not None) for row in rows]
    above = [_LINE + 2 if i < len(row_titles) else 0 for i in range(len(rows))]
    gap, top = 8, _LINE + 6
    lefts = np.cumsum([_MARGIN, *(width + gap for width in widths)])
    height = top + sum(above) + sum(heights) + gap * len(rows)
    page = _blank(int(lefts[-1]) - gap + _MARGIN, height)
    for title, x in zip(column_titles, lefts[:-1], strict=True):
        _write(page, _line(title), x, 6)
    y = top
    for i, row in enumerate(rows):
        if above[i]:
            _write(page, _line(row_titles[i], bold=True), _MARGIN, y + 3)
        y += above[i]
        for x, picture in zip(lefts[:-1], row, strict=True):
            if picture is not None:
                page[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        y += heights[i] + gap
    return page


def stack_pictures(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Put pictures below each other on white: (sum of heights, largest width, 3) uint8."""
    width = max(picture.shape[1] for picture in pictures)
    page = _blank(width, sum(picture.shape[0] for picture in pictures))
    y = 0
    for picture in pictures:
        page[y : y + picture.shape[0], : picture.shape[1]] = picture
        y += picture.shape[0]
    return page


def encode_jpeg(picture: np.ndarray) -> bytes:
    """JPEG of (H, W, 3) uint8 for a page: small, and outlines and names stay sharp."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def save_png(
    path: str | Path,
    picture: Image.Image | np.ndarray,
    note: str = "",
    fast: bool = False,
    words: Mapping[int, str] | None = None,
) -> Path:
    """Write a PNG; the file is complete or absent.

    Args:
        path: of the file.
        picture: an image, (H, W, 3) or (H, W) uint8.
        note, words: see `png_with_notes`.
        fast: compress with less care.

    Raises:
        OSError: the file cannot be written.
    """
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    return write_atomic(path, png_with_notes(image, note, words, **(_FAST if fast else {})))


def _wrap(text: str, width: int, bold: bool = False, italic: bool = False) -> list[Line]:
    """Break a text between words so that it stays on a page; without words there is no line."""
    rows: list[str] = []
    for word in text.split():
        longer = f"{rows[-1]} {word}" if rows else word
        if rows and _line(longer, bold, italic).width <= width - 2 * _MARGIN:
            rows[-1] = longer
        else:
            rows.append(word)
    return [_line(row, bold, italic) for row in rows]


def _line(text: str, bold: bool = False, italic: bool = False) -> Line:
    return line_of_text(text, _FONT, bold, italic)


def _write(page: np.ndarray, line: Line, x: float, y: float) -> None:
    """Write a line whose upper end is at y pixels."""
    line.draw(page, x, y + _ASCENT)


def _blank(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 255, dtype=np.uint8)
