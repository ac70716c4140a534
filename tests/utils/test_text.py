"""One line, the name that was meant, tables that spreadsheets read, json that parsers take."""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from tagclip.utils.text import (
    counted,
    did_you_mean,
    error_text,
    format_csv,
    json_text,
    listed,
    markdown_table,
    one_line,
    shortened,
    utf8_text,
)


def test_one_and_many() -> None:
    assert [counted(number, "shard") for number in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]


def test_white_space_is_one_space() -> None:
    assert one_line(" a\n\tb  c ") == "a b c"
    assert error_text(ValueError("a\nb")) == "ValueError: a b"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("SOLVER.BASE_LRR", "; did you mean SOLVER.BASE_LR?"),
        ("solver.base_lr", "; did you mean SOLVER.BASE_LR?"),
        ("Skye", "; did you mean sky?"),
        (7, ""),
        ("zebra", ""),
    ],
)
def test_the_nearest_name_is_proposed(word: object, hint: str) -> None:
    assert did_you_mean(word, iter(["sky", "SOLVER.BASE_LR", "SOLVER"])) == hint


def test_cells_of_a_table() -> None:
    row = ["a,b", None, float("nan"), 1 / 3, np.float32(0.5), True, 7, np.int64(8), [1, "x"], {}]
    text = format_csv([f"column {n}" for n in range(len(row))], [row])
    assert "\r" not in text and text.endswith("\n")
    _, cells = csv.reader(io.StringIO(text))
    assert cells == ["a,b", "", "", "0.3333", "0.5", "True", "7", "8", '[1, "x"]', "{}"]


def test_markdown_shows_what_it_is_given() -> None:
    lines = markdown_table(["a", "b"], [["x|y", "1.50"], ["z", 3]]).splitlines()
    rows = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    assert rows[0] == ["| a", "b    |"] and rows[2:] == [["| x\\|y", "1.50 |"], ["| z", "3    |"]]


def test_of_many_texts_the_first_are_shown() -> None:
    assert listed(["a", "b"], 2) == "a, b" and listed([], 2) == ""
    assert listed(["a", "b", "c", "d"], 2, "; ") == "a; b and 2 more"


def test_a_long_text_keeps_both_ends() -> None:
    assert shortened("0123456789", 10) == "0123456789"
    assert shortened("0123456789", 9) == "01...6789"


def test_what_is_no_utf8_is_escaped() -> None:
    name = os.fsdecode(b"caf\xc3\xa9 \xe9\x80.png")
    assert utf8_text(name) == "caf\u00e9 \\xe9\\x80.png"
    assert utf8_text("a\n\\ \U0001f993") == "a\n\\ \U0001f993" and utf8_text("\ud800") == "\\ud800"
    assert format_csv(["a"], [[name]]) == f"a\n{utf8_text(name)}\n"


def test_json_has_null_for_what_is_not_finite() -> None:
    values = [1.5, math.nan, np.float64("inf"), {"a": (-math.inf, "NaN", None, True, 3)}]
    assert json_text(values) == '[1.5, null, null, {"a": [null, "NaN", null, true, 3]}]'
    assert json_text({"b": 1, "a": "\u00e9"}, sort_keys=True, ensure_ascii=False, indent=1) == (
        json.dumps({"a": "\u00e9", "b": 1}, ensure_ascii=False, indent=1)
    )


def test_nothing_else_writes_json(repository: Path) -> None:
    folders = ("tagclip", "tools", "projects", "datasets")
    files = [file for folder in folders for file in (repository / folder).rglob("*.py")]
    writing = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            is_from = isinstance(node, ast.ImportFrom) and node.module == "json"
            is_call = isinstance(node, ast.Attribute) and node.attr in ("dump", "dumps")
            if is_from or (is_call and getattr(node.value, "id", "") == "json"):
                writing.add(file.relative_to(repository).as_posix())
    assert len(files) > 100 and writing == {"tagclip/utils/text.py"}
