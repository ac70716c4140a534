"""The table of results and the per-class table: complete, mergeable, safe for several processes."""

from __future__ import annotations

import csv
import json
import math
import os
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagclip.errors import ConfigError
from tagclip.evaluation.results import (
    append_result_row,
    read_metrics,
    result_row,
    write_per_class_csv,
)

TIME = datetime(2024, 2, 3, 4, 5, 6, 789, tzinfo=UTC)


def _content(**changes: Any) -> dict[str, Any]:
    content = {
        "dataset": "toy_val",
        "images": 7,
        "metrics": {"mIoU": 61.23456789, "hIoU": math.nan},
        "classes": [],
        "vocabulary": "toy",
        "vocabulary_fingerprint": "f" * 64,
        "split": "zs",
        "run": {"seed": 3, "templates": ["a {}.", 'the {}, "big"'], "git_commit": None},
    }
    return content | changes


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_row_holds_what_the_evaluation_was(tmp_path: Path) -> None:
    path = append_result_row(tmp_path / "new" / "results.csv", result_row(_content(), TIME))
    (row,) = _read(path)
    assert row == {
        "time": "2024-02-03T04:05:06+00:00",
        "dataset": "toy_val",
        "images": "7",
        "split": "zs",
        "vocabulary": "toy",
        "vocabulary_fingerprint": "f" * 64,
        "mIoU": "61.2346",
        "hIoU": "",
        "seed": "3",
        "templates": '["a {}.", "the {}, \\"big\\""]',
        "git_commit": "",
    }
    assert json.loads(row["templates"]) == _content()["run"]["templates"]


def test_columns_grow_and_old_rows_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    append_result_row(path, {"dataset": "a", "mIoU": 1.0, "gone": "x"})
    append_result_row(path, {"hIoU": np.float32(2.5), "dataset": "b", "mIoU": np.float64("nan")})
    assert path.read_text() == "dataset,mIoU,gone,hIoU\na,1.0,x,\nb,,,2.5\n"


_cell = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.dictionaries(_cell, _cell, max_size=4), min_size=1, max_size=4))
def test_any_text_comes_back(
    rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("results") / "results.csv"
    rows = [{**row, "dataset": "d"} for row in rows]
    for row in rows:
        append_result_row(path, row)
    columns = set().union(*rows)
    assert _read(path) == [{name: row.get(name, "") for name in columns} for row in rows]


def test_spreadsheet_marks_and_line_ends_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes("\ufeffdataset,mIoU\r\na,1.0\r\n".encode())
    append_result_row(path, {"dataset": "b", "mIoU": 2.0})
    assert path.read_text() == "dataset,mIoU\na,1.0\nb,2.0\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset;mIoU\na;1\n", "found the header 'dataset;mIoU'"),
        ("dataset,mIoU,mIoU\n", "expected different names"),
        ("dataset,mIoU\na,1\nb\n", "row 3 has 1 cells, expected 2"),
        ("dataset,mIoU\na,1,2\n", "row 2 has 3 cells, expected 2"),
        ('dataset,mIoU\n"a"b,1\n', "not a csv table"),
        ("mIoU\n1\n", "found the header 'mIoU'"),
    ],
)
def test_another_file_is_refused_and_kept(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        append_result_row(path, {"dataset": "a"})
    assert message in str(caught.value)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_text() == text


def test_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(ConfigError, match="not a csv table"):
        append_result_row(path, {"dataset": "a"})


def test_empty_file_and_empty_lines_hold_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.touch()
    append_result_row(path, {"dataset": "a"})
    assert path.read_text() == "dataset\na\n"
    path.write_text("\ndataset\n\na\n\n")
    append_result_row(path, {"dataset": "b"})
    assert path.read_text() == "dataset\na\nb\n"


def _append_many(path: str, process: int, count: int) -> None:
    for index in range(count):
        append_result_row(path, {"dataset": "d", "process": process, f"own {process}": index})


def test_two_processes_lose_no_row(tmp_path: Path) -> None:
    path, count = tmp_path / "results.csv", 40
    # Forked, so that nothing is imported anew.
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        tasks = [pool.submit(_append_many, str(path), process, count) for process in range(2)]
        for task in tasks:
            task.result()
    rows = _read(path)
    for process in range(2):
        own = [row for row in rows if row["process"] == str(process)]
        assert [row[f"own {process}"] for row in own] == [str(index) for index in range(count)]
    assert len(rows) == 2 * count


def test_failed_write_keeps_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.csv"
    append_result_row(path, {"dataset": "a"})

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            append_result_row(path, {"dataset": "b"})
    assert path.read_text() == "dataset\na\n"
    append_result_row(path, {"dataset": "c"})
    assert path.read_text() == "dataset\na\nc\n"
    assert {file.name for file in tmp_path.iterdir()} <= {"results.csv", ".results.csv.lock"}


def test_per_class_table(tmp_path: Path) -> None:
    classes = [
        {"name": "cat", "seen": True, "IoU": 50.0, "ACC": 66.66666, "pixels": 30, "other": 2},
        {"name": 'a "b", c', "seen": False, "IoU": math.nan, "ACC": None, "pixels": 0, "other": 0},
    ]
    path = write_per_class_csv(tmp_path / "inference" / "per_class.csv", classes)
    assert path.read_text() == (
        "index,name,seen,IoU,ACC,pixels,other\n"
        '0,cat,True,50.0,66.6667,30,2\n1,"a ""b"", c",False,,,0,0\n'
    )


def test_metrics_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    content = _content(metrics={"mIoU": None})
    path.write_text(json.dumps(content))
    assert read_metrics(path) == content


_CLASS = {"name": "a", "seen": True, "IoU": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "x"}, "found no 'images'"),
        ({"metrics": {"mIoU": "x"}}, "found 'x' as mIoU of metrics"),
        ({"metrics": {"mIoU": True}}, "found True as mIoU of metrics"),
        ({"metrics_by_split": [1]}, "found [1] as metrics_by_split of file"),
        ({"metrics_by_split": {"mIoU": {}}}, "found {} as mIoU of metrics_by_split"),
        ({"conventions": {"mmseg": 3}}, "found 3 as mmseg of conventions"),
        ({"classes": [_CLASS, 3]}, "found 3 as entry of classes[1]"),
        ({"classes": [{"name": "a", "seen": True}]}, "as entry of classes[0]"),
        ({"classes": [_CLASS | {"IoU": "x"}]}, "found 'x' as IoU of classes[0]"),
        ({"classes": [_CLASS | {"seen": 1}]}, "found 1 as seen of classes[0]"),
        ({"run": {"seed": "x"}}, "found 'x' as seed of run"),
        ({"run": {"clip_sha256": 3}}, "found 3 as clip_sha256 of run"),
        ({"run": {"trained_unseen": ["a", 3]}}, "found ['a', 3] among names of run"),
        ({"run": {"earlier_traces": {"saw": "a"}}}, "found 'a' among names of run"),
        ({"run": {"similar_names": [["a"]]}}, "found ['a'] in similar_names of run"),
    ],
)
def test_a_part_of_another_kind_is_named(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (path := tmp_path / "metrics.json").write_text(json.dumps(_content(metrics={}) | change))
    with pytest.raises(ConfigError) as caught:
        read_metrics(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: found") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("", "not a readable json"),
        # detectron2's training curve has the same name.
        ('{"iteration": 19}\n{"iteration": 39}\n', "not a readable json"),
        ("[]", "found no 'dataset'"),
        ('{"dataset": "a", "metrics": {}, "classes": {}, "run": {}}', "found no 'classes'"),
    ],
)
def test_no_metrics_file(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_metrics(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
