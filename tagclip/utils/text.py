"""Texts: one line of an error, the name that was meant, tables as csv, values as json."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

__all__ = [
    "counted",
    "did_you_mean",
    "error_text",
    "format_csv",
    "json_text",
    "listed",
    "markdown_table",
    "one_line",
    "shortened",
    "utf8_text",
]

# What stands in the name of a file, in Python, for a byte that is no UTF-8.
_BYTE = re.compile("[\udc80-\udcff]")


def counted(number: int, noun: str) -> str:
    """Return ``"1 image"``, ``"2 images"``: a number and what there is, whose plural ends in s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def one_line(text: object) -> str:
    """Return a text with every run of white space as one space."""
    return " ".join(str(text).split())


def utf8_text(text: str) -> str:
    r"""Return a text that can be written and drawn: what is no UTF-8 in the name of a file, and
    half a surrogate pair, is escaped as in Python (``caf\xe9.png``)."""
    text = _BYTE.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shortened(text: str, limit: int) -> str:
    """Return a text, or its beginning and its end with ``...`` between, ``limit`` characters."""
    if len(text) <= limit:
        return text
    end = limit // 2
    return f"{text[: limit - end - 3]}...{text[-end:]}"


def listed(texts: Sequence[str], limit: int, separator: str = ", ") -> str:
    """Return the first ``limit`` texts in one line, and how many more there are."""
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return separator.join(texts[:limit]) + more


def error_text(error: BaseException) -> str:
    """Return type and message of an exception in one line."""
    return f"{type(error).__name__}: {one_line(error)}"


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return ``"; did you mean NAME?"`` for the end of a message, or "" if no name is near.

    Args:
        word: what was found; upper and lower case are the same.
        known: what is there.
    """
    names = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(str(word).casefold(), names, n=1)
    return f"; did you mean {names[near[0]]}?" if near else ""


def format_csv(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table as csv.

    Args:
        head: names of the columns.
        rows: values in their order; None and nan become empty cells, floats are rounded to 4
            digits, lists and dicts become json. What is no UTF-8 is escaped (`utf8_text`).
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return utf8_text(text.getvalue())


def markdown_table(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table of Markdown; cells stand as they are, with their vertical bars escaped.

    Args:
        head: names of the columns.
        rows: cells in their order.
    """
    # Here, for everything else works without any package.
    from tabulate import tabulate

    safe = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(safe, head, tablefmt="github", disable_numparse=True)


def _cell(value: Any) -> Any:
    if isinstance(value, Real) and not isinstance(value, Integral):
        return "" if math.isnan(value) else round(float(value), 4)
    return json_text(value) if isinstance(value, (list, tuple, dict)) else value


def json_text(content: Any, **options: Any) -> str:
    """Return valid json: what is not finite becomes null, which Python would write as NaN.

    Args:
        content: dicts, lists, tuples, texts, numbers, truth values, None.
        options: of `json.dumps`.
    """
    return json.dumps(_finite(content), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
