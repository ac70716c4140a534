"""The web page under one visitor who asks for the worst that is allowed: time and memory."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter

import pytest
from detectron2.config import CfgNode
from helpers.clip_files import TINY_CLIP, random_clip
from helpers.pictures import picture
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import changed
from PIL import Image
from safetensors.torch import save_file

from tagclip.projects import import_projects

httpx = pytest.importorskip("httpx", reason="not installed: pip install '.[demo]'")
pytest.importorskip("gradio_client", reason="not installed: pip install '.[demo]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

# What one long picture may be with windows of 512 pixels, 426 apart: 31 windows of at most 32.
WORST, WORDS = (1, 26), ", ".join(f"w{number} x" for number in range(190))
SLIDERS = ["both", 0.1, 0.0, 0.5]
VISITORS, ASKED = 200, 7


@pytest.fixture
def weights(tiny_cfg: CfgNode, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A tiny model with windows of ``request.param`` pixels; another process finds its CLIP."""
    import_projects(["minibench"])
    clip, window = tmp_path / "clip.safetensors", request.param
    save_file(dict(random_clip(TINY_CLIP).state_dict()), clip)
    keys = {
        "MODEL.CLIP.PRETRAINED": str(clip),
        "DATASETS.TRAIN": ("minibench_train",),
        "DATASETS.TEST": ("minibench_val",),
        "MODEL.TAGCLIP.TEST.WINDOW": window,
        "MODEL.TAGCLIP.TEST.STRIDE": window * 426 // 512,
        "INPUT.MIN_SIZE_TEST": window,
    }
    opts = [value for pair in keys.items() for value in pair]
    return save_tiny(changed(tiny_cfg, "PROJECTS", ["minibench"], *opts), tmp_path / "output")


@pytest.fixture
def server(repository: Path, weights: Path) -> Iterator[tuple[int, str]]:
    """Process id and address of the page, started by its own command."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tool = repository / "projects" / "WebDemo" / "serve.py"
    command = [sys.executable, str(tool), "--weights", str(weights), "--port", str(port)]
    # Freed memory goes back at once, so that what is resident is what is kept.
    env = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    with subprocess.Popen(
        [*command, "--max-seconds", "600"],
        cwd=repository,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        log = iter(process.stdout.readline, "")
        lines = []
        assert any(lines.append(line) or "The page is at" in line for line in log), lines
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield process.pid, f"http://127.0.0.1:{port}"
        process.terminate()
        process.wait()
    assert process.returncode == 0


def png(image: Image.Image) -> bytes:
    image.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def ask(address: str, content: bytes, words: str, session: str) -> str:
    """The answer of the page to one visitor."""
    api = f"{address}/gradio_api"
    sent = httpx.post(f"{api}/upload", files={"files": ("a.png", content)}, timeout=600)
    data = [{"path": sent.json()[0]}, words, "", *SLIDERS]
    body = {"data": data, "session_hash": session}
    event = httpx.post(f"{api}/call/segment", json=body, timeout=600).json()["event_id"]
    return httpx.get(f"{api}/call/segment/{event}", timeout=600).text


def resident(process: int) -> float:
    """MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


@pytest.mark.parametrize("weights", [512], indirect=True)
def test_a_second_visitor_beside_the_worst_picture(server: tuple[int, str]) -> None:
    """Prints the ratio of both latencies: the figure of docs/promises.md."""
    _, address = server
    photo = png(Image.fromarray(picture(480, 640)))
    worst, is_over = png(Image.new("1", WORST)), threading.Event()

    def seconds() -> float:
        start = perf_counter()
        assert "event: complete" in ask(address, photo, "cat, zebra, sky", "second")
        return perf_counter() - start

    def fill(number: int) -> list[str]:
        """The page of the first visitor, who never stops."""
        answers = []
        while not is_over.is_set():
            answers.append(ask(address, worst, f"{WORDS}, n{len(answers)}", "first"))
        return answers

    seconds()
    idle = [seconds() for _ in range(ASKED)]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fill, 0)
        try:
            busy = [seconds() for _ in range(ASKED)]
        finally:
            is_over.set()
        answers = first.result()
    assert answers and all("event: complete" in answer for answer in answers), answers[-1][-300:]
    print(
        f"\nsecond visitor, median of {ASKED}: {median(idle):.2f} s idle, {median(busy):.2f} s "
        f"beside the worst picture of {len(worst)} bytes: {median(busy) / median(idle):.2f} times"
    )


@pytest.mark.parametrize("weights", [64], indirect=True)
def test_memory_does_not_grow_with_visitors(server: tuple[int, str]) -> None:
    """200 visitors with a picture of 31 windows and 191 words each."""
    process, address = server
    content, mib = png(Image.new("1", WORST)), []
    for number in range(VISITORS):
        answer = ask(address, content, f"{WORDS}, n{number}", f"visitor {number}")
        assert "event: complete" in answer, answer[-300:]
        mib.append(resident(process))
    print(
        f"\n{VISITORS} visitors: {mib[19]:.1f} MiB after 20, {mib[-1]:.1f} after all: "
        f"{mib[-1] / mib[19]:.3f} times"
    )
    assert mib[-1] < 1.1 * mib[19]
