"""The web page under one visitor who asks for the worst that is allowed: time and memory."""

from __future__ import annotations

import io
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter

import pytest
from detectron2.config import CfgNode
from helpers.pictures import picture
from helpers.webdemo_server import findable_weights, served_alone
from PIL import Image

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
def server(
    tiny_cfg: CfgNode, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[int, str]]:
    """Process id and address of the page; windows have ``request.param`` pixels."""
    window = request.param
    keys = {"TEST.WINDOW": window, "TEST.STRIDE": window * 426 // 512}
    opts = [word for key, value in keys.items() for word in (f"MODEL.TAGCLIP.{key}", value)]
    weights = findable_weights(tiny_cfg, tmp_path, *opts, "INPUT.MIN_SIZE_TEST", window)
    with served_alone(weights, "--max-seconds", "600") as found:
        yield found


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


@pytest.mark.parametrize("server", [512], indirect=True)
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


@pytest.mark.parametrize("server", [64], indirect=True)
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
