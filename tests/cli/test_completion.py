"""Completion of `tagclip`, as a shell asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tagclip import model_zoo
from tagclip.cli.commands import MODULES


def ask(line: str, folder: Path, rest: str = "") -> tuple[list[str], set[str]]:
    """What a line can go on with at its end, where ``rest`` follows, and what was imported."""
    output = folder / "completions"
    output.touch()
    # Instead of file descriptor 8.
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(output),
        "COMP_LINE": line + rest,
        "COMP_POINT": str(len(line)),
    }
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tagclip"],
        cwd=folder,
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not result.stdout and "Traceback" not in result.stderr
    found = [word.strip() for word in output.read_text().split("\n") if word]
    return found, {row.split("|")[-1].strip() for row in result.stderr.splitlines()}


FIRST = list(dict.fromkeys(name.split()[0] for name in MODULES))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tagclip ", FIRST),
        ("tagclip se", ["segment", "setup-detectron2"]),
        ("tagclip --v", ["--version"]),
        ("tagclip labels ", ["convert", "export"]),
        ("tagclip labels e", ["export"]),
        ("tagclip minibench t", ["table"]),
        ("tagclip visualize  results --d", ["--dataset"]),
        ("tagclip nothing ", []),
        ("tagclip train --config-f", ["--config-file"]),
        ("tagclip train --config-file official/voc12_ind", ["official/voc12_inductive"]),
        (
            "tagclip train --config-file=zegclip/Base-ZegCLIP.",
            ["--config-file=zegclip/Base-ZegCLIP.yaml"],
        ),
        ("tagclip train --config-file mi", ["mine.yaml", "minibench/"]),
        ("tagclip train --resume SOLVER.MAX_I", ["SOLVER.MAX_ITER"]),
        ("tagclip segment ä.png TEST.SAVE_PREDICTIONS png TEST.SAVE_L", ["TEST.SAVE_LOGITS"]),
        ("tagclip train SOLVER.MAX_ITER SOLVER.MAX_I", []),
        ("tagclip segment --weights mode", ["model.pth"]),
        ("tagclip segment pict", ["picture.png"]),
        ("tagclip labels convert a --unknown i", ["ignore"]),
        ("tagclip run-onnx --run", ["--runtime"]),
    ],
)
def test_completion(line: str, expected: list[str], tmp_path: Path) -> None:
    """A name of the zoo that goes on in two ways is given as both."""
    for name in ("mine.yaml", "model.pth", "picture.png", "notes.txt"):
        (tmp_path / name).touch()
    found, modules = ask(line, tmp_path)
    if "--config-file" in line and not line.endswith("."):
        names = [name for name in model_zoo.list() if name.startswith(tuple(expected))]
        expected = [*(file for file in ("mine.yaml",) if file in expected), *names]
    assert found == expected or sorted(found) == sorted(expected)
    assert "argcomplete" in modules
    assert not {"torch", "numpy", "detectron2", "cv2", "yaml"} & modules


def test_all_options_of_a_command(tmp_path: Path) -> None:
    found, _ = ask("tagclip evaluate -", tmp_path, rest=" --resume")
    assert {"--config-file", "--weights", "--num-gpus", "--help"} <= set(found)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_command_has_options_to_complete(name: str, tmp_path: Path) -> None:
    found, modules = ask(f"tagclip {name} --h", tmp_path)
    assert "--help" in found
    assert not {"torch", "numpy", "detectron2", "cv2"} & modules
