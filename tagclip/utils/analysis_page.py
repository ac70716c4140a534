"""Pages of an analysis: HTML files that need nothing else, and the tables in them."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["SECTIONS", "Figures", "comparison_rows", "figure_rows", "render_page"]

Figures = Mapping[str, Mapping[str, float]]

# Sections of `LogitAnalysis.figures`.
SECTIONS = {
    "own": "model's gate",
    "none": "no gate",
    "oracle": "oracle gate",
    "detector": "detection of unseen pixels: AUROC of",
    "calibration": "trusty map as a probability",
}
# Not in percent.
_PLAIN = ("bias", "best bias", "mean P(seen) on seen pixels", "mean P(seen) on unseen pixels")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 1320px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { text-align: left; padding: .15rem 1.2rem .15rem 0; border-bottom: 1px solid #ddd;
  vertical-align: top; overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; display: block; }
.side { display: flex; flex-wrap: wrap; gap: 1rem; }
"""


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
    body = [f"<h1>{escape(title)}</h1>"]
    for heading, contents in parts:
        if heading:
            body.append(f"<h2>{escape(heading)}</h2>")
        body += [_render(content) for content in contents]
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            "img-src data:; style-src 'unsafe-inline'\">",
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        )
    )


def _render(content: str | Sequence[Sequence[str]] | Mapping[str, bytes]) -> str:
    if isinstance(content, str):
        return f"<p>{escape(content)}</p>"
    if isinstance(content, Mapping):
        pictures = [_picture(png, text) for text, png in content.items()]
        return "\n".join(('<div class="side">', *pictures, "</div>"))
    head, *rows = content
    lines = ["<table>", f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>"]
    for row in rows:
        cells = [f"<td>{escape(text)}</td>" for text in row[:2]]
        cells += [f'<td class="number">{escape(text)}</td>' for text in row[2:]]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join((*lines, "</table>"))


def _picture(png: bytes, description: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<div><img alt="{escape(description)}" src="data:image/png;base64,{data}"></div>'
