"""Lines of text: the letters that a figure of matplotlib would show, wherever they are put."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.utils.visualizer import VisImage

from tagclip.visualization.raster_text import line_of_text

WHITE = 255


def page_of(height: int = 60, width: int = 420, gray: int = WHITE) -> np.ndarray:
    return np.full((height, width, 3), gray, dtype=np.uint8)


@pytest.mark.parametrize("size", [12, 12.5, 20, 31.3])
@pytest.mark.parametrize(
    ("style", "flags"),
    [({}, {}), ({"weight": "bold"}, {"bold": True}), ({"style": "italic"}, {"italic": True})],
    ids=["normal", "bold", "italic"],
)
@pytest.mark.parametrize("text", ["★ yellow ball, jpg", r"50_x^2 $\frac$", "", "кошка ÅÉ"])
def test_letters_are_those_of_a_figure(
    text: str, style: dict[str, str], flags: dict[str, bool], size: float
) -> None:
    figure, page = VisImage(page_of()), page_of()
    line = line_of_text(text, size, **flags)
    figure.ax.text(
        10, 40, text, va="baseline", size=size * 72 / figure.dpi, parse_math=False, **style
    )
    line.draw(page, 10, 40)
    assert np.abs(figure.get_image().astype(int) - page).max() <= 9
    dark = np.argwhere(page[..., 0] < 128) - (40, 10)
    if len(dark):
        assert -line.above <= dark[:, 0].min() and dark[:, 0].max() < line.below
        assert dark[:, 1].min() >= -2 and dark[:, 1].max() <= line.width


@pytest.mark.parametrize(("x", "y"), [(-15, 20), (50, 3), (20, 33), (-300, 0), (90, -90), (20, 99)])
def test_what_is_outside_of_the_page_is_cut_off(x: int, y: int) -> None:
    line, large = line_of_text("★ any word", 20), page_of(430, 700)
    line.draw(large, 300 + x, 200 + y)
    page = page_of(30, 60)
    line.draw(page, x, y)
    assert (page == large[200:230, 300:360]).all()


def test_text_is_laid_over_what_is_there() -> None:
    line, white, black = line_of_text("MW", 30), page_of(), page_of(gray=0)
    line.draw(white, 10, 40)
    line.draw(black, 10, 40, gray=200)
    # The part that is text, on both pages.
    cover = 1 - white / 255
    assert 0 < cover.max() == 1 and np.abs(black - 200 * cover).max() <= 0.5
    gray = page_of(gray=100)
    line.draw(gray, 10, 40, gray=100)
    assert (gray == 100).all()


def test_a_line_that_no_page_can_hold_is_cut() -> None:
    line, page = line_of_text("M" * 10000, 12), page_of(30, 200)
    line.draw(page, 0, 20)
    assert line.width > 1 << 15 and (page[:, -20:] < WHITE).any()
