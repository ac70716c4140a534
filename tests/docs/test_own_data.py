"""docs/own_data.md leads from files of every kind to a trained and scored model: it is run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import miniature_data
from helpers.shell_blocks import run_blocks, shell_blocks

PAGE = "docs/own_data.md"
# A section that begins with this comment is run on the files of that function.
_FILES = re.compile(r"<!-- files: (\w+) -->\n(.*?)(?=^#|^<!-- files: )", re.MULTILINE | re.DOTALL)
TEXT = (Path(__file__).parents[2] / PAGE).read_text(encoding="utf-8")
SECTIONS = {match[1]: match[2] for match in _FILES.finditer(TEXT)}
# What follows is the same for all.
TRAIN = TEXT.partition("\n## Train, evaluate, score\n")[2].partition("\n## ")[0]


def test_every_kind_of_files_has_its_section() -> None:
    kinds = {
        name
        for name, value in vars(miniature_data).items()
        if getattr(value, "__module__", "") == miniature_data.__name__
        and callable(value)
        and value.__annotations__.get("root")
    }
    assert SECTIONS.keys() == kinds
    assert all(shell_blocks(text) for text in SECTIONS.values())


# Some 40 seconds each, most of them for what is the same for all.
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "ids")) for kind in SECTIONS],
)
def test_files_become_a_trained_and_scored_model(kind: str, tmp_path: Path) -> None:
    getattr(miniature_data, kind)(tmp_path)
    run_blocks([*shell_blocks(SECTIONS[kind]), *shell_blocks(TRAIN)], tmp_path, f"{PAGE} ({kind})")
    evaluated = json.loads((tmp_path / "output/mine/inference/mine_val/metrics.json").read_text())
    scored = json.loads((tmp_path / "output/score/inference/mine_val/metrics.json").read_text())
    assert evaluated["confusion"] == scored["confusion"]
    assert evaluated["metrics"]["mIoU"] == scored["metrics"]["mIoU"]
