"""Trainings that tests/helpers/killed_training.py runs, and whether two of them ended the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from helpers.tiny_run import write_tiny_dataset

from tagclip.checkpoint import read_checkpoint

TESTS = Path(__file__).resolve().parents[1]
STEPS, PERIOD, VAL_IMAGES = 8, 2, 3
# What a line of the curve says about time and not about the training.
_TIMES = ("time", "data_time", "eta_seconds")


def write_config(root: Path, clip: str, vocabulary: str) -> Path:
    """Eight steps with augmentation, dropout and two loader processes; a checkpoint every second.

    Evaluates after four and eight.
    """
    write_tiny_dataset(root, val=VAL_IMAGES)
    folders = [
        {
            "name": f"killed_{subset}",
            "images": str(root / "images" / subset),
            "labels": str(root / "labels" / subset),
            "vocabulary": vocabulary,
        }
        for subset in ("train", "val")
    ]
    config = {
        "_BASE_": str(TESTS.parent / "configs" / "Base-ZeroShot.yaml"),
        "MODEL": {
            "DEVICE": "cpu",
            "CLIP": {"NAME": clip, "PRETRAINED": "", "PROMPT": {"NUM_TOKENS": 3, "DROPOUT": 0.1}},
            "TAGCLIP": {"NUM_HEADS": 4, "DROPOUT": 0.1, "TEST": {"WINDOW": 64, "STRIDE": 48}},
        },
        "INPUT": {
            "CROP": {"SIZE": [64, 64]},
            "MIN_SIZE_TRAIN": [64, 72],
            "MIN_SIZE_TEST": 64,
            "COLOR_AUG_SSD": True,
        },
        "DATASETS": {
            "FOLDER_DATASETS": folders,
            "TRAIN": ["killed_train"],
            "TEST": ["killed_val"],
        },
        "DATALOADER": {"NUM_WORKERS": 2},
        "SOLVER": {
            "IMS_PER_BATCH": 2,
            "MAX_ITER": STEPS,
            "CHECKPOINT_PERIOD": PERIOD,
            "WARMUP_ITERS": 3,
            "BASE_LR": 0.01,
        },
        "TEST": {"EVAL_PERIOD": 4},
    }
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@dataclass(frozen=True)
class Workshop:
    """Starts trainings of one config.

    Attributes:
        root: their folders are below it.
        config: see `write_config`.
        server: tests/helpers/killed_training.py.
    """

    root: Path
    config: Path
    server: subprocess.Popen

    @classmethod
    def open(cls, root: Path, clip: str, vocabulary: str) -> Workshop:
        """Start the process that forks the trainings."""
        server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "helpers.killed_training"],
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return cls(root, write_config(root, clip, vocabulary), server)

    def close(self) -> None:
        """End it."""
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()

    def arguments(self, output: Path, *more: str) -> list[str]:
        """Of tools/train_net.py."""
        return ["--config-file", str(self.config), *more, "OUTPUT_DIR", str(output)]

    def train(self, name: str, *more: str, **moment: Any) -> int:
        """Train in the folder ``name``, until a moment as in tests/helpers/killed_training.py.

        Returns:
            The exit code, minus the signal that ended the process.
        """
        output = self.root / name
        request = {
            "arguments": self.arguments(output, *more),
            "log": str(self.root / f"{name}.log"),
            **moment,
        }
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def log(self, name: str) -> str:
        """What the trainings in a folder printed."""
        return (self.root / f"{name}.log").read_text()


def check_folder(output: Path) -> int | None:
    """After a kill every checkpoint is complete, and the last one is there.

    Returns:
        The iteration to resume at; None if nothing has been saved.
    """
    saved = {path.name: read_checkpoint(path)["iteration"] for path in output.glob("*.pth")}
    tag = output / "last_checkpoint"
    if tag.exists():
        return saved[tag.read_text()] + 1
    # Only the first checkpoint may be without.
    assert len(saved) <= 1
    return max(saved.values()) + 1 if saved else None


def curve(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.json without times, those of finished evaluations with the steps'."""
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in _TIMES} for line in lines]


def result(output: Path) -> dict[str, Any]:
    """What the last evaluation wrote; somebody may commit while this runs."""
    (path,) = output.glob("inference/*/metrics.json")
    content = json.loads(path.read_text())
    del content["run"]["git_commit"]
    return content


def same(left: Any, right: Any) -> bool:
    """Whether nested dicts and lists of tensors and numbers hold the same bits."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return type(left) is type(right) and left == right


def assert_same_end(output: Path, straight: Path, start: int) -> None:
    """Weights, optimizer, curve and metrics of a resumed run are those of the uninterrupted.

    Args:
        output: folder of a run that was resumed.
        straight: of one that was not interrupted.
        start: iteration at which it was resumed.
    """
    found, expected = (
        torch.load(folder / "model_final.pth", weights_only=True) for folder in (output, straight)
    )
    assert {"model", "optimizer", "trainer", "tagclip", "iteration"} <= expected.keys()
    for key in expected:
        assert same(found[key], expected[key]), key
    assert found.keys() == expected.keys()
    assert result(output) == result(straight)
    lines, expected_lines = curve(output), curve(straight)
    assert lines[start - len(expected_lines) :] == expected_lines[start:]
    # Before, an evaluation may have been interrupted; a step that was done twice has two lines.
    for line in lines:
        assert line.items() <= expected_lines[line["iteration"]].items()
    assert not list(output.glob(".*.tmp"))


def starts(log: str) -> list[int]:
    """Iterations at which trainings started."""
    return [int(number) for number in re.findall(r"Starting training from iteration (\d+)", log)]
