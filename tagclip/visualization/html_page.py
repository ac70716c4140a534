"""HTML pages that need nothing else: no script, no file, nothing from a network."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["html_page", "html_picture", "html_table"]

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


def html_page(title: str, body: Iterable[str], style: str = "") -> str:
    """Return a page.

    Args:
        title: plain text, also the heading.
        body: pieces of HTML.
        style: more CSS.
    """
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            "img-src data:; style-src 'unsafe-inline'\">",
            f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>",
            f"<h1>{escape(title)}</h1>",
            *body,
            "</body>\n</html>\n",
        )
    )


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """Return a table.

    Args:
        head: plain text of its first row; only empty texts leave that out.
        rows: plain text of the cells.
        texts: so many columns are texts; those behind are numbers.
    """
    lines = ["<table>"]
    if any(head):
        lines.append(f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>")
    for row in rows:
        cells = [f"<td>{escape(text)}</td>" for text in row[:texts]]
        cells += [f'<td class="number">{escape(text)}</td>' for text in row[texts:]]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join((*lines, "</table>"))


def html_picture(png: bytes, description: str) -> str:
    """Return a PNG file inside the page, with a text for who cannot see it."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'
