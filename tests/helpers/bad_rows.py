"""What the tests of bad inputs share: a table of cases, and a place to call the tools."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import changed, exit_of, load_tool, run_arguments, write_run_config
from PIL import Image

from tagclip import TagCLIPPredictor
from tagclip.utils.cli import run_tool

TOOLS = Path(__file__).resolve().parents[2] / "tools"


class Rows(dict[str, Callable[["Bench"], None]]):
    """Cases by name, which is rowNN_what of the function; used as a decorator."""

    def __call__(self, case: Callable[[Bench], None]) -> Callable[[Bench], None]:
        self[case.__name__] = case
        return case

    @property
    def numbers(self) -> set[int]:
        """Rows that have a case."""
        return {int(name[3:5]) for name in self}


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


def picture(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8, smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height)))


def jpeg() -> bytes:
    """A whole file."""
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG")
    return buffer.getvalue()


def huge_png(side: int) -> bytes:
    """A PNG that announces side x side pixels and holds none of them."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(b""), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


def video(path: Path, broken: int | None = None) -> Path:
    """Six frames; one of them without its JPEG data."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 70))
    for seed in range(6):
        writer.write(picture(70, 96, seed))
    writer.release()
    content = bytearray(path.read_bytes())
    starts = [i for i in range(len(content)) if content[i : i + 3] == b"\xff\xd8\xff"]
    if broken is not None:
        first, end = starts[broken] + 20, starts[broken + 1] - 8
        content[first:end] = bytes(end - first)
        path.write_bytes(content)
    return path


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
    """A folder, the tiny model, and calls of the tools.

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
