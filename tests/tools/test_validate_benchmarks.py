"""prepare -> validate on the benchmarks' own layouts: clean, and raw labels are recognised."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.miniature_trees import (
    benchmarks_at,
    make_coco,
    make_context,
    make_voc,
    run_script,
)
from helpers.tiny_run import load_tool

from tagclip.data.datasets.builtin import read_benchmarks
from tagclip.errors import DatasetError

VOC = "VOCdevkit/VOC2012/SegmentationClass"
COCO = "coco/stuffthingmaps/val2017"


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    """tools/validate_dataset.py."""
    return load_tool(repository / "tools" / "validate_dataset.py")


def _validate(tool: ModuleType, output: Path, name: str) -> tuple[int, list[dict[str, Any]]]:
    code = tool.main(tool.parse_args([name, "--output", str(output), "--workers", "0"]))
    return code, json.loads((output / name / "report.json").read_text())["problems"]


@pytest.mark.parametrize(
    ("make", "script", "name", "raw", "message"),
    [
        (make_voc, "prepare_voc", "voc2012_val", VOC, "raw ids of voc2012 (1..20)"),
        (make_coco, "prepare_coco_stuff", "coco_stuff_val", COCO, "raw ids of coco_stuff (0..181)"),
    ],
)
def test_before_and_after_preparation(
    make: Callable[[Path], Any],
    script: str,
    name: str,
    raw: str,
    message: str,
    tool: ModuleType,
    tmp_path: Path,
) -> None:
    command = "run: tagclip " + script.replace("_", " ", 1).replace("_", "-")
    make(tmp_path)
    with benchmarks_at(tmp_path):
        with pytest.raises(DatasetError, match=command):
            _validate(tool, tmp_path / "out", name)
        run_script(script, tmp_path, "--only", name)
        code, problems = _validate(tool, tmp_path / "out", name)
        # So few images have not every class; nothing else is worth a note.
        assert code == 0 and {problem["kind"] for problem in problems} <= {"absent"}
        for path in (tmp_path / read_benchmarks()[name].labels).iterdir():
            shutil.copy(tmp_path / raw / path.name, path)
        code, problems = _validate(tool, tmp_path / "out", name)
    assert code == 1
    assert problems[0]["title"].startswith(message)
    assert problems[0]["advice"] == command


def test_prepared_context_is_clean(tool: ModuleType, tmp_path: Path) -> None:
    make_context(tmp_path)
    with benchmarks_at(tmp_path):
        run_script("prepare_pascal_context", tmp_path, "--only", "pascal_context59_val")
        code, problems = _validate(tool, tmp_path / "out", "pascal_context59_val")
    assert code == 0 and {problem["kind"] for problem in problems} <= {"absent"}
