"""From the start of a process to a mask in a file, and to the help of the command."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from detectron2.modeling import build_model

import tagclip
from tagclip import TagCLIPCheckpointer, load_config
from tagclip.checkpoint import checkpoint_metadata
from tagclip.errors import ConfigError
from tagclip.projects import import_projects
from tagclip.projects.benchmark.findings import Findings
from tagclip.projects.benchmark.measure import Timing
from tagclip.projects.benchmark.workload import Workload

__all__ = ["WORDS", "startup", "untrained_checkpoint"]

_CONFIG = "minibench/tagclip_minibench_noun_fence_board_convtrust.yaml"
WORDS = "yellow ball, green dice, red board, water"
_HERE = Path(tagclip.__file__).parents[1]


def startup(workload: Workload, runs: int) -> Findings:
    """One image by MiniBench's model, whose weights are random; with a base, both in turn.

    Raises:
        ConfigError: a command of the base fails.
    """
    folder = Path(workload.image).parent / "startup"
    folder.mkdir()
    weights, image = untrained_checkpoint(folder), folder / "image.png"
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8))
    found = Findings("startup")
    options = ["--weights", weights, "--input", str(image), "--vocab", WORDS, "--overwrite"]
    options += ["--output", str(folder / "segmented"), "MODEL.DEVICE", workload.device]
    here = [sys.executable, "-m", "tagclip", "segment", *options]
    commands = {"tagclip segment": (here, _HERE)}
    if workload.base:
        base = Path(workload.base).resolve()
        # An environment that holds this checkout would mix both.
        own = base / ".venv" / "bin" / "python"
        python = str(own) if own.is_file() else sys.executable
        tool = [python, str(base / "tools" / "demo.py"), *options]
        commands["tools/demo.py of the base"] = (tool, base)
    times = _alternate(commands, folder, runs)
    for name, (wall, cpu) in times.items():
        found.add(f"{name}: to the mask", wall)
        found.add(f"{name}: to the mask, CPU time", cpu)
    if workload.base:
        (wall, cpu), (base_wall, base_cpu) = times.values()
        ratio = found.add("to the mask over the base", wall.over(base_wall), "x")
        found.add("to the mask over the base, CPU time", cpu.over(base_cpu), "x")
        found.add_bar("to the first mask over the base", ratio, "x", 0.7, 0.6)
    shown = {"help": ([sys.executable, "-m", "tagclip", "--help"], _HERE)}
    wall, _ = _alternate(shown, folder, runs)["help"]
    found.add_bar("tagclip --help", found.add("tagclip --help", wall), "ms", 1000)
    return found


def untrained_checkpoint(folder: Path) -> str:
    """An untrained model as training writes it; its time does not depend on the values."""
    cfg = load_config(_CONFIG, ["MODEL.DEVICE", "cpu"])
    import_projects(cfg.PROJECTS)
    model = build_model(cfg)
    metadata = checkpoint_metadata(cfg, model)
    TagCLIPCheckpointer(model, str(folder), metadata=metadata).save("model_final")
    return str(folder / "model_final.pth")


def _alternate(
    commands: dict[str, tuple[list[str], Path]], folder: Path, runs: int
) -> dict[str, tuple[Timing, Timing]]:
    """Wall and CPU seconds of each; the first run of each fills caches and does not count."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(runs + 1):
        for name, (command, checkout) in commands.items():
            spent[name].append(_run(command, checkout, folder))
    return {
        name: tuple(Timing(tuple(column)) for column in zip(*found[1:], strict=True))
        for name, found in spent.items()
    }


def _run(command: list[str], checkout: Path, folder: Path) -> tuple[float, float]:
    environment = os.environ | {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        raise ConfigError(f"{checkout}: {' '.join(command[1:4])} ended with: {lines[-1]}")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return wall, cpu
