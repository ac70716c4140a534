"""Comparing runs: figures against plain arithmetic, warnings, refusals, the chart."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.tiny_run import load_tool
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tagclip.analysis.comparison import (
    RunResult,
    class_rows,
    differences,
    load_results,
    repetitions,
    training_differences,
)
from tagclip.errors import ConfigError

RUN = {
    "protocol": "inductive, split zs: 3 seen / 1 unseen; no trusty token",
    "setting": "inductive",
    "seed": 0,
    "weights": "model_final.pth",
    "weights_sha256": "0" * 64,
    "clip": "tiny",
    "clip_sha256": "c" * 64,
    "templates": "single",
    "training_vocabulary": "t" * 64,
    "trusty_target": None,
    "gate": "both",
    "seen_bias": 0.1,
    "git_commit": "abcdef0123456789",
}
TRAINING = {
    "iterations": 60,
    "trained_iterations": 60,
    "trained_config": "a" * 12,
    "training_files": "b" * 64,
}
IOU = {"cat": 50.0, "dog": 20.0, "sky|sea": 80.0, "tree": None}


def _content(iou: dict[str, float | None] = IOU, metrics: Any = None, **changes: Any) -> dict:
    run = {key: changes.pop(key) for key in list(changes) if key in (*RUN, *TRAINING)}
    return {
        "dataset": "toy_val",
        "images": 7,
        "metrics": metrics or {"mIoU": 50.0, "mIoU-seen": 65.0, "hIoU": 30.5, "pAcc": None},
        "classes": [
            {"name": name, "seen": name != "dog", "IoU": value, "ACC": value, "pixels": 3}
            for name, value in iou.items()
        ],
        "vocabulary": "toy",
        "vocabulary_fingerprint": "f" * 64,
        "split": "zs",
        "run": RUN | run,
        **changes,
    }


def _write(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "inference" / content["dataset"] / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return str(folder)


def _results(*contents: dict[str, Any]) -> list[RunResult]:
    return [RunResult(f"run {index}", content) for index, content in enumerate(contents, start=1)]


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    """tools/compare_runs.py."""
    return load_tool(repository / "tools" / "compare_runs.py")


def _cells(markdown: str, start: str) -> list[str]:
    (line,) = [line for line in markdown.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")]


def test_metrics_and_differences(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # What an earlier version did not write is n/a.
    worse = {"mIoU": 50.0, "mIoU-seen": 65.0, "hIoU": 30.5, "pAcc": None, "trusty-FPR95": 80.0}
    better = {"mIoU": 52.345, "mIoU-seen": 60.0, "mIoU-unseen": 10.0, "hIoU": None, "pAcc": 1.0}
    better |= {"trusty-AUROC": 90.0, "trusty-AUPR": 70.0, "trusty-FPR95": 20.0}
    runs = [
        _write(tmp_path / "a", _content(metrics=worse)),
        _write(tmp_path / "b", _content(IOU | {"dog": 44.0, "cat": 45.0}, better, seed=5)),
    ]
    tool.main(tool.parse_args([*runs, "--output", str(tmp_path / "out")]))
    printed = capsys.readouterr().out
    assert _cells(printed, "| 1  | a")[2:] == [
        "65.00", "n/a", "30.50", "50.00", "n/a", "n/a", "n/a", "80.00",
    ]  # fmt: skip
    expected = ["60.00 (-5.00)", "10.00", "n/a", "52.34 (+2.34)", "1.00"]
    expected += ["90.00", "70.00", "20.00 (-60.00)"]
    assert _cells(printed, "| 2  | b")[2:] == expected
    assert "Warning" not in printed
    markdown = (tmp_path / "out" / "toy_val.md").read_text()
    assert _cells(markdown, "| dog") == ["dog", "unseen", "20.00", "44.00", "+24.00"]
    assert _cells(markdown, "| sky") == ["sky/sea", "seen", "80.00", "80.00", "+0.00"]
    assert _cells(markdown, "| tree") == ["tree", "seen", "n/a", "n/a", "n/a"]
    # Largest gain first, undefined last.
    order = [markdown.index(f"| {name}") for name in ("dog", "sky", "cat", "tree")]
    assert order == sorted(order)
    assert (tmp_path / "out" / "toy_val.png").is_file()


@pytest.mark.parametrize("trained", [False, True])
def test_the_page_says_what_its_classes_are_called_seen_by(
    tool: ModuleType, tmp_path: Path, trained: bool
) -> None:
    """By masks where these differ from the split, by which the metrics above are."""
    first = _content(metrics={"mIoU-unseen": None if trained else 20.0})
    if trained:
        first["classes"][1]["seen"] = True
        first["metrics_by_split"] = {"mIoU-unseen": 20.0}
    runs = [_write(tmp_path / "a", first), _write(tmp_path / "b", _content(seed=1))]
    tool.main(tool.parse_args([*runs, "--output", str(tmp_path / "out")]))
    markdown = (tmp_path / "out" / "toy_val.md").read_text()
    assert _cells(markdown, "| 1  | a")[3] == "20.00"
    assert _cells(markdown, "| class")[1] == ("by masks" if trained else "")
    assert _cells(markdown, "| dog")[1] == ("seen" if trained else "unseen")
    assert ("masks trained run 1, not those of the split" in markdown) == trained


def test_mean_and_spread_of_seeds_only(tool: ModuleType) -> None:
    values = {"a": 41.0, "b": 44.5, "c": 39.25}
    contents = [
        _content(metrics={"hIoU": value}, seed=seed, git_commit=str(seed), weights_sha256="x")
        for seed, value in enumerate(values.values())
    ]
    other = _content(metrics={"hIoU": 99.0}, seed=7, gate="none")
    same_seed = _content(metrics={"hIoU": 99.0}, seed=7, gate="none")
    results = _results(*contents, other, same_seed)
    assert [[r.label for r in group] for group in repetitions(results)] == [
        ["run 1", "run 2", "run 3"]
    ]
    row = tool.metric_rows(results)[-1]
    mean, std = statistics.fmean(values.values()), np.std(list(values.values()), ddof=1)
    assert row[1] == "mean ± std of 1, 2, 3"
    assert row[2 + list(tool.METRICS).index("hIoU")] == f"{mean:.2f} ± {std:.2f}"
    assert row[2] == "n/a"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": 20}, "iterations 20, not 60"),
        # An evaluation of weights that another training saved on its way.
        ({"iterations": None, "trained_iterations": 20}, "iterations 20, not 60"),
        ({"trained_config": "c" * 12}, f"config of the training (hash) {'c' * 12}, not {'a' * 12}"),
        (
            {"training_files": "d" * 64},
            f"training images and label files (hash) {'d' * 12}, not {'b' * 12}",
        ),
    ],
)
def test_seeds_that_were_trained_otherwise_have_no_mean(
    tool: ModuleType, change: dict[str, Any], message: str
) -> None:
    trained = {k: v for k, v in TRAINING.items() if k != "trained_iterations"}
    contents = [
        _content(seed=0, **trained),
        _content(seed=1, **trained | change),
        _content(seed=2, **TRAINING | {"iterations": None}),
        # Of an earlier version, which counts as the same.
        _content(seed=3),
    ]
    results = _results(*contents)
    assert [[r.label for r in group] for group in repetitions(results)] == [
        ["run 1", "run 3", "run 4"]
    ]
    line = f"run 2 was trained otherwise than run 1, no repetition of it: {message}"
    assert training_differences(results) == [line]
    text = tool.format_summary("toy_val", results, [])
    assert f"- {line}\n" in text and "mean ± std of 1, 3, 4" in text
    is_shown = "iterations" in message
    assert ("iterations" in _cells(text, "|    | config")) == is_shown
    if is_shown:
        rows = [line.split("|")[-2].strip() for line in text.splitlines() if "| inductive" in line]
        assert rows == ["60", "20", "60", ""]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary_fingerprint": "e" * 64}, "class list is toy eeeeeeeeeeee, not toy ffff"),
        ({"split": "other"}, "split is 'other', not 'zs'"),
        ({"images": 8}, "number of images is 8, not 7"),
        ({"clip_sha256": "d" * 64}, "CLIP sha256 is dddddddddddd, not cccccccccccc"),
        ({"training_vocabulary": "u" * 64}, "list of trained classes is uuuu"),
        ({"setting": "supervised"}, "protocol is supervised, not inductive"),
        (
            {"protocol": "inductive, ...; trusty target = novel (reads where unseen pixels are)"},
            "protocol is inductive, which reads where unseen pixels are, not inductive",
        ),
    ],
)
def test_what_cannot_be_compared_is_said(change: dict[str, Any], message: str) -> None:
    (line,) = differences(_results(_content(), _content(**change)))
    assert line.startswith("run 2 is not comparable with run 1: ")
    assert message in line and "\n" not in line


def test_other_images_and_corrected_labels_are_said_and_not_averaged(tool: ModuleType) -> None:
    """Under the same name, and as many images."""
    first, second, third = (_content(seed=seed) for seed in range(3))
    for content, dog, sky in ((second, 4, 2), (third, 3, 3)):
        content["classes"][1]["pixels"], content["classes"][2]["pixels"] = dog, sky
    results = _results(first, second, third)
    assert differences(results) == [
        "run 2 is not comparable with run 1: its images or labels are others: 4 labelled pixels of "
        "'dog', not 3 (2 of 4 classes differ)"
    ]
    assert [[r.label for r in group] for group in repetitions(results)] == [["run 1", "run 3"]]
    assert tool.metric_rows(results)[-1][1] == "mean ± std of 1, 3"
    # A class that only one has, or whose pixels nobody wrote, says nothing.
    del second["classes"][1]
    for row in second["classes"]:
        row.pop("pixels")
    assert differences(results) == []


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"gate": "none"},
        {"seen_bias": 0.3},
        {"trusty_target": "seen", "protocol": "inductive, ...; trusty target = seen"},
        {"weights": "model_0000099.pth", "git_commit": None},
    ],
)
def test_what_experiments_vary_is_comparable(change: dict[str, Any]) -> None:
    assert differences(_results(_content(), _content(**change))) == []


_iou = st.dictionaries(st.sampled_from("abcdefgh"), st.none() | st.floats(0, 100), min_size=1)


@settings(max_examples=50, deadline=None)
@given(tables=st.lists(_iou, min_size=1, max_size=4))
def test_class_rows_against_plain_arithmetic(tables: list[dict[str, float | None]]) -> None:
    rows = class_rows(_results(*(_content(table) for table in tables)))
    common = [name for name in tables[0] if all(name in table for table in tables)]
    assert sorted(row.name for row in rows) == sorted(common)
    for row in rows:
        values = [table[row.name] for table in tables]
        assert all(
            math.isnan(a) if b is None else a == b for a, b in zip(row.iou, values, strict=True)
        )
        if None in values:
            assert math.isnan(row.difference)
        else:
            first, *others = values
            expected = np.mean([value - first for value in others]) if others else first
            assert row.difference == pytest.approx(expected, abs=1e-9)
    defined = [not math.isnan(row.difference) for row in rows]
    assert defined == sorted(defined, reverse=True)
    known = [row.difference for row in rows if not math.isnan(row.difference)]
    assert known == sorted(known, reverse=True)


def test_runs_are_named_by_folder_inference_folder_or_file(tmp_path: Path) -> None:
    run = _write(tmp_path / "x" / "one", _content())
    # Training writes another metrics.json.
    Path(run, "metrics.json").write_text('{"iteration": 19}\n{"iteration": 39}\n')
    other = Path(_write(tmp_path / "y" / "one", _content(seed=1)))
    _write(other.parent / "two", _content(dataset="other_val"))
    inference = other / "inference" / "toy_val"
    by_folder = load_results([run, str(other)])
    assert [result.label for result in by_folder["toy_val"]] == ["x/one", "y/one"]
    for path in (inference, inference / "metrics.json"):
        (_, second) = load_results([run, str(path)])["toy_val"]
        assert second.run("seed") == 1


def test_a_copy_beside_a_result_is_not_that_of_the_run(tmp_path: Path) -> None:
    run = Path(_write(tmp_path / "run", _content()))
    own, copy = (run / "inference" / name for name in ("toy_val", "toy_val_old"))
    shutil.move(own, copy)
    _write(run, _content(seed=1))
    for path, seed in ((run, 1), (copy, 0)):
        (found,) = load_results([str(path)])["toy_val"]
        assert found.run("seed") == seed
    own.rename(own.with_name("older"))
    with pytest.raises(ConfigError, match="several results of toy_val .* older, toy_val_old, exp"):
        load_results([str(run)])
    shutil.rmtree(own.with_name("older"))
    (found,) = load_results([str(run)])["toy_val"]
    assert found.run("seed") == 0


def test_every_common_dataset_or_one(tmp_path: Path) -> None:
    runs = [_write(tmp_path / name, _content()) for name in "ab"]
    for run in runs:
        _write(Path(run), _content(dataset="b_val"))
    _write(Path(runs[0]), _content(dataset="c_val"))
    assert list(load_results(runs)) == ["b_val", "toy_val"]
    assert list(load_results(runs, "b_val")) == ["b_val"]


def test_what_is_missing_ends_in_one_line(tmp_path: Path) -> None:
    a, b = _write(tmp_path / "a", _content()), _write(tmp_path / "b", _content(dataset="b_val"))
    (tmp_path / "empty").mkdir()
    cases = {
        "no such folder; name the OUTPUT_DIR": ([a, str(tmp_path / "none")], ""),
        "no inference/<dataset>/metrics.json": ([str(tmp_path / "empty")], ""),
        "found no result on 'b_val' in": ([b, a], "b_val"),
        "expected a dataset that all runs share": ([a, b], ""),
        "is named twice": ([a, f"{a}/../a"], ""),
    }
    for message, (runs, dataset) in cases.items():
        with pytest.raises(ConfigError) as caught:
            load_results(runs, dataset)
        assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("runs", "classes"), [(1, 1), (9, 3), (2, 171)])
def test_chart(tool: ModuleType, runs: int, classes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    iou = [rng.uniform(0, 100, classes) for _ in range(runs)]
    tables = [{f"class_{k}": value for k, value in enumerate(row)} | {"$x_y$": None} for row in iou]
    results = _results(*(_content(table) for table in tables))
    path = tmp_path / "chart.png"
    tool.draw_classes(class_rows(results), results, "toy_val", path)
    # Up to 100 rows below each other, each high enough for its name.
    rows = -(-(classes + 1) // 2) if classes >= 100 else classes + 1
    with Image.open(path) as image:
        width, height = image.size
    assert 18 * rows <= height < 30 * rows + 400
    assert 700 < width < 3000


def test_chart_is_the_same_file_each_time(tool: ModuleType, tmp_path: Path) -> None:
    results = _results(_content(), _content(IOU | {"cat": 60.0}))
    for name in ("one.png", "two.png"):
        tool.draw_classes(class_rows(results), results, "toy_val", tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
