"""The tool with a checkpoint of a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from detectron2.config import CfgNode
from helpers.demo_tool import WORDS
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import load_tool, own_loggers


@pytest.fixture
def demo(repository: Path) -> Iterator[ModuleType]:
    with own_loggers():
        yield load_tool(repository / "tools" / "demo.py")


@pytest.fixture
def weights(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    """A checkpoint in the OUTPUT_DIR of the fixture tiny_cfg."""
    return save_tiny(tiny_cfg, tmp_path / "output")


@pytest.fixture
def run(demo: ModuleType, weights: Path, tmp_path: Path) -> Callable[..., int]:
    """Call the tool with the checkpoint and, if there is anything for it, the output folder out."""

    def call(*arguments: Any, words: tuple[str, str] = ("--vocab", WORDS)) -> int:
        common = ["--weights", str(weights)]
        if "--no-draw" not in arguments or "--save-labels" in arguments:
            common += ["--output", str(tmp_path / "out")]
        return demo.main(demo.parse_args([*common, *words, *map(str, arguments)]))

    return call


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a picture is drawn."""
    for module in ("images", "videos"):
        monkeypatch.setattr(
            f"tagclip.demo.{module}.draw_prediction", lambda *_: pytest.fail("a picture is drawn")
        )
