"""The web page of a tiny model, served for a test."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.clip_files import TINY_CLIP, random_clip
from helpers.paths import REPOSITORY
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import changed
from safetensors.torch import save_file
from torch import nn

from tagclip import TagCLIPPredictor
from tagclip.projects import import_projects
from tagclip.projects.webdemo.server import serve


class Calls:
    """How often a module ran."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        module.register_forward_hook(self._add)

    def _add(self, *_: object) -> None:
        self.count += 1


def scores_under_the_pointer(page: str) -> dict[str, object]:
    """What hover.js gets: names, and (1 or 3, h, w) labels, ranks and scores in percent."""
    data = json.loads(unescape(re.search('data-scores="([^"]*)"', page)[1]))
    shape = (-1, data["height"], data["width"])
    for key in ("labels", "top", "scores", "trusty"):
        values = np.frombuffer(base64.b64decode(data[key]), np.uint8)
        data[key] = values.reshape(shape)
    return data


def findable_weights(cfg: CfgNode, folder: Path, *opts: object) -> Path:
    """A tiny model whose datasets and CLIP another process finds as well."""
    import_projects(["minibench"])
    clip = folder / "clip.safetensors"
    save_file(dict(random_clip(TINY_CLIP).state_dict()), clip)
    keys = (
        "PROJECTS", ["minibench"],
        "MODEL.CLIP.PRETRAINED", str(clip),
        "DATASETS.TRAIN", ("minibench_train",),
        "DATASETS.TEST", ("minibench_val",),
    )  # fmt: skip
    return save_tiny(changed(cfg, *keys, *opts), folder / "output")


def page_command(weights: Path, *words: str) -> tuple[list[str], int]:
    """The page's own command with these words, and its port, one that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tool = REPOSITORY / "projects" / "WebDemo" / "serve.py"
    return [sys.executable, str(tool), "--weights", str(weights), "--port", str(port), *words], port


@contextmanager
def served_alone(weights: Path, *words: str) -> Iterator[tuple[int, str]]:
    """Process id and address of the page, started by its own command with these words."""
    command, port = page_command(weights, *words)
    # Freed memory goes back at once, so that what is resident is what is kept.
    env = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        log, lines = iter(process.stdout.readline, ""), []
        assert any(lines.append(line) or "The page is at" in line for line in log), lines
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield process.pid, f"http://127.0.0.1:{port}"
        process.terminate()
        process.wait()
    assert process.returncode == 0


@contextmanager
def served(
    predictor: TagCLIPPredictor,
    image: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    port: int = 0,
    **more: object,
) -> Iterator[str]:
    """Address of the page, with one example of two words and more arguments of `serve`.

    Args:
        predictor, folder, more: see `serve`.
        image: file of the example.
        monkeypatch: for the environment.
        port: 0 for one that is free.
    """
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR",
                 "FORWARDED_ALLOW_IPS"):  # fmt: skip
        monkeypatch.setenv(name, "")
    # gradio's own.
    monkeypatch.setenv("GRADIO_ANALYTICS_MAX_EVENTS", "10000")
    monkeypatch.setenv("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1")
    # What a user's environment might hold must not open the page to others.
    monkeypatch.setenv("GRADIO_SHARE", "True")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = port or probe.getsockname()[1]
    examples = [(str(image), "cat, grass")]
    page = serve(predictor, examples, folder, port=port, max_upload_mb=1, **more)
    try:
        assert (page.share, page.server_name, page.analytics_enabled) == (False, "127.0.0.1", False)
        yield page.local_url
    finally:
        page.close(verbose=False)
