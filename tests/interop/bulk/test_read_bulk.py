"""What `tagclip bulk` writes, in the readers of others: the examples of docs/bulk.md."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.documented_bulk import FOUND, LABELS, WORDS, run_example, write_documented_run
from PIL import Image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_documented_run(tmp_path)
    return tmp_path


def test_numpy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_example("pycocotools", root, monkeypatch)
    labels = LABELS["000000.png"]
    assert (found["labels"] == labels).all()
    assert list(found["unseen"]) == [*LABELS, "000005.png"]
    assert list(found["masks"]) == ["green board"]
    assert (found["masks"]["green board"] == (labels == 1)).all()


def test_pandas(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    segments = run_example("import pandas", root, monkeypatch)["segments"]
    rows = [
        (image_id, WORDS.names[k], float(np.float32((labels == k).mean())), 0.75)
        for image_id, labels in LABELS.items()
        for k in range(3)
        if (labels == k).any()
    ]
    columns = ["image_id", "name", "share", "score"]
    assert list(segments[columns].itertuples(index=False, name=None)) == rows
    assert "green board" in capsys.readouterr().out


@pytest.mark.parametrize("package", ["duckdb", "pyarrow.compute"])
def test_retrieval(package: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_example(f"import {package}", root, monkeypatch)["found"]
    if package == "duckdb":
        assert [name for name, _ in found.fetchall()] == FOUND
    else:
        order = [("share", "descending"), ("image_id", "ascending")]
        assert found.sort_by(order)["image_id"].to_pylist() == FOUND


def test_supervision(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_example("to_supervision", root, monkeypatch)["detections"]
    assert list(found["class_name"]) == ["green board"] and found.confidence.tolist() == [0.75]
    assert (found.mask[0] == (LABELS["000000.png"] == 1)).all()


def test_webdataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_documented_run(tmp_path, "webdataset")
    found = run_example("import webdataset", tmp_path, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines] == [*LABELS, "000005.png"]
    assert lines[1] == "000001.png ['red ball', 'green board']" and lines[-1] == "000005.png []"
    dataset = found["wds"].WebDataset(found["shards"], shardshuffle=False).decode()
    for sample, labels in zip(dataset, LABELS.values(), strict=False):
        values = np.array(Image.open(io.BytesIO(sample["png"])))
        assert (values == np.array([0, 1, 2, WORDS.ignore_label])[labels]).all()
