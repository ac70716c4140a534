"""Addresses, such as of buckets, in the place of an output: no results in a folder ``s3:``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.tiny_run import tiny_config
from helpers.writing_commands import CASES, Case, Stage, ended

ADDRESS = "s3://bucket/out"
# They print, or write to folders of their own names.
WITHOUT_OUTPUT = {"configs", "cost", "minibench", "towers"}


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory, tiny_clip_json: str, tiny_vocabulary_json: str
) -> Stage:
    root = tmp_path_factory.mktemp("addresses")
    return Stage(root, tiny_config(root, tiny_clip_json, tiny_vocabulary_json))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case))
        for case in CASES
        if not case.is_temporary and case.command not in WITHOUT_OUTPUT
    ],
)
def test_an_address_as_output(
    case: Case, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in case.needs:
        pytest.importorskip(name)
    # pathlib leaves one slash.
    words = [str(word).replace("s3:/", "s3://") for word in case.words(stage, Path(ADDRESS))]
    monkeypatch.chdir(tmp_path)
    code, line = ended(case.command, *words)
    assert code == 1 and line.startswith(f"ConfigError: {ADDRESS}")
    assert "found an address, expected a path of this machine; mount" in line and "\n" not in line
    assert not any(name.startswith("s3") for name in os.listdir())
