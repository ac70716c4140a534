"""A folder with a tiny model and dataset, on which the tools are called as a user calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from helpers.paths import TOOLS
from helpers.pictures import picture
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import changed, exit_of, load_tool, run_arguments, write_run_config
from helpers.toy_dataset import write_json
from PIL import Image

from tagclip import TagCLIPPredictor, register_zero_shot_sem_seg
from tagclip.utils.cli import run_tool

NO_TEST = ("DATASETS.TEST", "()")


def refused(call: Callable[..., Any], *parts: Any) -> str:
    """Call as a tool is called; it has to end with exit code 1 and one line that has the parts."""
    line = exit_of(run_tool, call)
    # Text as exit code: Python prints it to stderr and exits with 1.
    assert isinstance(line, str), f"ended with {line}, expected an error"
    assert len(line.splitlines()) == 1, line
    missing = [str(part) for part in parts if str(part) not in line]
    assert not missing, f"{missing} not in: {line}"
    return line


def files_below(folder: Path) -> dict[str, bytes]:
    """Path below the folder -> content of every file, hidden ones as well."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def run_process(root: Path, *command: Any, debug: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a tool as a user does, offline."""
    environment = os.environ | {"TAGCLIP_DEBUG": "1" if debug else "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(TOOLS / command[0]), *map(str, command[1:])],
        cwd=root, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def refused_as_process(root: Path, command: tuple[Any, ...], *parts: Any) -> None:
    """One line on stderr and exit code 1; with TAGCLIP_DEBUG=1 the traceback."""
    plain, debug = (run_process(root, *command, debug=debug) for debug in (False, True))
    assert (plain.returncode, debug.returncode) == (1, 1), plain.stderr
    assert len(plain.stderr.splitlines()) == 1, plain.stderr
    for part in parts:
        assert str(part) in plain.stderr and str(part) in debug.stderr, plain.stderr
    assert "Traceback" not in plain.stderr + plain.stdout
    assert "Traceback (most recent call last)" in debug.stderr


@dataclass
class Bench:
    """A folder, the tiny model and dataset, and calls of the tools.

    Attributes:
        root: an empty folder, of the fixture tiny_cfg as well.
        cfg: of the fixture tiny_cfg.
        patch, capsys, caplog: pytest's.
    """

    root: Path
    cfg: CfgNode
    patch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture
    caplog: pytest.LogCaptureFixture

    def __post_init__(self) -> None:
        # What is logged once only is logged in every case.
        self.patch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
        self.patch.delenv("TAGCLIP_DEBUG", raising=False)

    @classmethod
    def of(cls, request: pytest.FixtureRequest) -> Self:
        """Put together from the fixtures of a test."""
        names = ("tmp_path", "tiny_cfg", "monkeypatch", "capsys", "caplog")
        return cls(*map(request.getfixturevalue, names))

    @property
    def output(self) -> Path:
        """OUTPUT_DIR."""
        return Path(self.cfg.OUTPUT_DIR)

    @cached_property
    def weights(self) -> Path:
        """A checkpoint in OUTPUT_DIR."""
        return save_tiny(self.cfg, self.output)

    @cached_property
    def config(self) -> Path:
        """A config file of four training steps, on a dataset that it makes."""
        return write_run_config(self.cfg, self.root)

    def predictor(self, *opts: Any) -> TagCLIPPredictor:
        """The checkpoint with other values of config keys."""
        return TagCLIPPredictor(changed(self.cfg, "MODEL.WEIGHTS", str(self.weights), *opts))

    def demo(self, *arguments: Any) -> int | str | None:
        """Call tools/demo.py with the checkpoint; return what the process would end with."""
        tool = load_tool(TOOLS / "demo.py")
        words = [] if "--vocab" in arguments else ["--vocab", "cat, zebra"]
        common = ["--weights", self.weights, *words, *arguments]
        return exit_of(run_tool, tool.run, tool.parse_args(list(map(str, common))))

    def train(self, *opts: Any, **options: Any) -> Any:
        """Call tools/train_net.py; return what the process would end with, None for 0."""
        tool = load_tool(TOOLS / "train_net.py")
        return exit_of(run_tool, tool.start, run_arguments(self.config, *opts, **options))

    def training(self, *opts: Any, **options: Any) -> Callable[[], Any]:
        """The same for `refused`."""
        tool, args = load_tool(TOOLS / "train_net.py"), run_arguments(self.config, *opts, **options)
        return lambda: tool.start(args)

    def new_training(self, *opts: Any) -> Callable[[], Any]:
        """Training into a folder of its own, beside that of the checkpoint."""
        return self.training("OUTPUT_DIR", self.root / "anew", *opts)

    def evaluation(self, weights: Path, *opts: Any) -> Callable[[], Any]:
        """Evaluation of a file, into another folder."""
        other = ("OUTPUT_DIR", self.root / "evaluated")
        return self.training("MODEL.WEIGHTS", weights, *other, *opts, eval_only=True)

    def save_image(self, name: str, content: np.ndarray | bytes | None = None) -> Path:
        """Write a picture (RGB), or these bytes, into the folder ``in``."""
        path = self.root / "in" / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            Image.fromarray(picture() if content is None else content).save(path)
        return path

    def said(self) -> str:
        """All output and log messages up to now."""
        captured = self.capsys.readouterr()
        return captured.out + captured.err + self.caplog.text

    def file(self, kind: str, subset: str) -> Path:
        """First of the "images" or "labels" of the "train" or "val" set."""
        _ = self.config
        return self.root / kind / subset / "0.png"

    def label(self, subset: str) -> np.ndarray:
        """(H, W) uint8 of the first label."""
        return np.array(Image.open(self.file("labels", subset)))

    def save_labels(self, label: np.ndarray | Callable[[np.ndarray], np.ndarray]) -> None:
        """Replace the first label of both sets by an array, or by what a function makes of it."""
        for subset in ("train", "val"):
            new = label(self.label(subset)) if callable(label) else label
            Image.fromarray(new).save(self.file("labels", subset))

    def register(self, tree: dict[str, Any] | Path, subset: str = "train") -> str:
        """Register a set under another name, with this vocabulary (tree or file)."""
        _ = self.config
        name = f"{subset}_{self.root.name}_{len(DatasetCatalog.list())}"
        if isinstance(tree, dict):
            tree = write_json(self.root / f"{name}.json", tree)
        folders = self.root / "images" / subset, self.root / "labels" / subset
        register_zero_shot_sem_seg(name, *folders, tree, image_ext="png")
        return name

    def training_on(self, name: str, *opts: Any) -> Callable[[], Any]:
        """Training on one dataset, for `refused`."""
        return self.new_training("DATASETS.TRAIN", f"('{name}',)", *NO_TEST, *opts)

    def evaluation_on(self, *names: str) -> Callable[[], Any]:
        """Evaluation on other datasets, for `refused`."""
        return self.evaluation(self.weights, "DATASETS.TEST", repr(names))

    def metrics(self, name: str) -> dict[str, Any]:
        """The metrics.json of an evaluation."""
        path = self.root / "evaluated" / "inference" / name / "metrics.json"
        return json.loads(path.read_text())

    def refused_label(self, *parts: Any) -> None:
        """Training and evaluation name the first label and leave no checkpoint and no result."""
        before = self.checkpoints() | {self.weights}
        trying = self.new_training(), self.evaluation(self.weights)
        for subset, call in zip(("train", "val"), trying, strict=True):
            refused(call, f"Error: {self.file('labels', subset)}: ", *parts)
        assert self.checkpoints() == before
        assert not self.results()

    def results(self) -> list[Path]:
        """What evaluations wrote."""
        return [*self.root.rglob("inference/**/metrics.json"), *self.root.rglob("results.csv")]

    def checkpoints(self) -> set[Path]:
        """All of them."""
        return set(self.root.rglob("*.pth"))

    def validate(self, *names: str) -> tuple[int, dict[str, dict[str, Any]], str]:
        """Call tools/validate_dataset.py; return code, report by dataset, and what was printed."""
        tool, output = load_tool(TOOLS / "validate_dataset.py"), self.root / "validated"
        code = tool.main(tool.parse_args([*names, "--output", str(output), "--workers", "0"]))
        reports = {name: json.loads((output / name / "report.json").read_text()) for name in names}
        assert all((output / name / "histogram.png").stat().st_size for name in names)
        return code, reports, self.said()

    def asking(self, *arguments: Any) -> Callable[[], Any]:
        """Call of tools/demo.py on one image, for `refused`; writes to the folder ``out``."""
        tool, image = load_tool(TOOLS / "demo.py"), self.save_image("a.png")
        common = ["--weights", self.weights, "--input", image, "--output", self.root / "out"]
        args = tool.parse_args(list(map(str, [*common, *arguments])))
        return lambda: tool.run(args)


def problems(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The problems and notes of a validation, by kind."""
    return {problem["kind"]: problem for problem in report["problems"]}
