"""Numbers on command lines: each has a range, and what is outside starts nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType

import pytest
from helpers.tiny_run import load_tool

from tagclip import projects
from tagclip.cli.commands import MODULES
from tagclip.utils.tool_parser import NumberIn

# Refused by the tool itself, with exit code 1: its tests say so.
CHECKED = {"train": {"--prove-protocol"}}


@pytest.fixture
def tool(command: str, repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script of a command, which may import those beside it."""
    package, module = f"tagclip.{MODULES[command]}".rsplit(".", 1)
    folder = repository / projects._FOLDERS[package]
    monkeypatch.syspath_prepend(str(folder))
    return load_tool(folder / f"{module}.py")


@pytest.mark.parametrize("command", MODULES)
def test_every_number_has_a_range(command: str, tool: ModuleType) -> None:
    actions = tool.make_parser()._actions
    bare = {action.option_strings[0] for action in actions if action.type in (int, float)}
    assert bare == CHECKED.get(command, set())
    for action in actions:
        if not isinstance(action.type, NumberIn):
            continue
        read, low, high = action.type, action.type.low, action.type.high
        if action.default is not None:
            assert low <= action.default <= high
        assert (read(str(low)), read(str(high))) == (low, high)
        texts = [str(low - 1), str(high + 1), "nan", "inf", "-inf", "", "x", "9" * 400, "None"]
        texts += ["0.5"] * (read.kind is int)
        for text in texts:
            with pytest.raises(argparse.ArgumentTypeError, match=f"from {low} to {high}"):
                read(text)


@pytest.mark.parametrize(
    ("command", "words", "found"),
    [
        ("minibench table", ["--seeds", "0"], "--seeds: found '0', expected a whole number from 1"),
        ("minibench table", ["--workers", "-1"], "--jobs: found '-1', expected a whole number"),
        ("minibench novelty", ["--first-seed", "-1"], "--first-seed: found '-1', expected a whole"),
        ("minibench clip", ["--output", "o", "--lr", "nan"], "--lr: found 'nan', expected a"),
        ("segment", ["--vocab", "a", "--processes", "0", "b.png"], "--workers/--processes: found"),
        ("segment", ["b.png", "--num-gpus", "0"], "--num-gpus: found '0', expected a whole number"),
        ("train", ["--num-gpus", "-1"], "--num-gpus: found '-1', expected a whole number from 1"),
        ("evaluate", ["--num-machines", "0"], "--num-machines: found '0', expected a whole numb"),
        ("train", ["--machine-rank", "-1"], "--machine-rank: found '-1', expected a whole number"),
        ("bulk", ["--vocab", "a", "--shard-size", "0", "--output", "o", "i"], "--shard-size: f"),
        ("benchmark", ["--threads", "-1"], "--threads: found '-1', expected a whole number from 1"),
        ("validate", ["x", "--workers", "-1"], "--workers: found '-1', expected a whole number"),
        ("labels convert", ["m", "--output", "o", "--threshold", "0"],
         "--threshold: found '0', expected a whole number from 1 to 65535"),
        ("bulk-read", ["d", "--class", "a", "--above", "nan"], "--above: found 'nan', expected a"),
    ],
)  # fmt: skip
def test_what_is_outside_is_a_mistake_of_the_command_line(
    command: str, words: list[str], found: str, tool: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        tool.make_parser().parse_args(words)
    assert found in capsys.readouterr().err
