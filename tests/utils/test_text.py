"""Texts for people: one line, the name that was meant, tables that spreadsheets read."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from tagclip.utils.text import did_you_mean, error_text, format_csv, one_line


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
