"""Pages of an analysis: HTML files that need nothing else, and the tables in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tagclip.visualization.html_page import html_page, html_picture, html_table

__all__ = ["SECTIONS", "Figures", "comparison_rows", "figure_rows", "render_page"]

Figures = Mapping[str, Mapping[str, float]]

# Sections of `GateAnalysis.figures`.
SECTIONS = {
    "own": "model's gate",
    "none": "no gate",
    "oracle": "oracle gate",
    "detector": "detection of unseen pixels: AUROC of",
    "clutter": "unlabelled pixels that get an unseen class",
    "calibration": "trusty map as a probability",
}
# Not in percent.
_PLAIN = ("bias", "best bias", "mean P(seen) on seen pixels", "mean P(seen) on unseen pixels")


def figure_rows(figures: Figures) -> list[tuple[str, str, str]]:
    """(section, figure, value or n/a) of every figure; values in percent but for biases, P."""
    return [
        (SECTIONS[section], name, _format(name, value))
        for section, values in figures.items()
        for name, value in values.items()
    ]


def comparison_rows(figures: Sequence[Figures]) -> list[tuple[str, ...]]:
    """(section, figure, one value per run) with differences to the first run in brackets."""
    rows = []
    for section, values in figures[0].items():
        for name, base in values.items():
            others = [other[section][name] for other in figures[1:]]
            cells = [_format(name, base)]
            for value in others:
                known = not (math.isnan(value) or math.isnan(base))
                change = f" ({_format(name, value - base, '+')})" * known
                cells.append(_format(name, value) + change)
            rows.append((SECTIONS[section], name, *cells))
    return rows


def _format(name: str, value: float, sign: str = "") -> str:
    if math.isnan(value):
        return "n/a"
    digits = 3 if name in _PLAIN else 2
    # Adding 0 turns -0 into 0.
    return f"{round(value, digits) + 0:{sign}.{digits}f}"


def render_page(title: str, parts: Iterable[tuple[str, Iterable[Any]]]) -> str:
    """Return a page of headings with what stands below them.

    Args:
        title: of the page.
        parts: (heading, or "" for none; its contents): a text is a paragraph, a list of rows a
            table whose first row is its head, and a dict of alt text -> PNG file pictures side by
            side.
    """
    body = []
    for heading, contents in parts:
        if heading:
            body.append(f"<h2>{escape(heading)}</h2>")
        body += [_render(content) for content in contents]
    return html_page(title, body)


def _render(content: str | Sequence[Sequence[str]] | Mapping[str, bytes]) -> str:
    if isinstance(content, str):
        return f"<p>{escape(content)}</p>"
    if isinstance(content, Mapping):
        pictures = [f"<div>{html_picture(png, text)}</div>" for text, png in content.items()]
        return "\n".join(('<div class="side">', *pictures, "</div>"))
    head, *rows = content
    return html_table(head, rows, texts=2)
