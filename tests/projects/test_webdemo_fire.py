"""The web page under fire: 200 questions, 8 visitors at a time, each gets the own answer."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.clip_files import TINY_CLIP, random_clip
from helpers.pictures import picture
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import changed
from helpers.webdemo_server import scores_under_the_pointer
from PIL import Image
from safetensors.torch import save_file

from tagclip import TagCLIPPredictor
from tagclip.projects import import_projects
from tagclip.projects.webdemo.session import Limits, Settings, encode_image

client = pytest.importorskip("gradio_client", reason="not installed: pip install '.[demo]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

VISITORS, ROUNDS, WARM_UP = 8, 25, 5
# Each visitor's last scores and words are kept; a picture of every question kept would be 40 MiB.
ALLOWED_MIB = 20.0
SLIDERS = ("both", 0.1, 0.0, 0.5)


@pytest.fixture
def weights(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    """A model whose datasets and CLIP another process finds as well."""
    import_projects(["minibench"])
    clip = tmp_path / "clip.safetensors"
    save_file(dict(random_clip(TINY_CLIP).state_dict()), clip)
    keys = (
        "MODEL.CLIP.PRETRAINED",
        str(clip),
        "DATASETS.TRAIN",
        ("minibench_train",),
        "DATASETS.TEST",
        ("minibench_val",),
    )
    return save_tiny(changed(tiny_cfg, "PROJECTS", ["minibench"], *keys), tmp_path / "output")


@pytest.fixture
def server(repository: Path, weights: Path, tmp_path: Path) -> Iterator[tuple[int, str]]:
    """Process id and address of the page, started by its own command."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tool = repository / "projects" / "WebDemo" / "serve.py"
    command = [sys.executable, str(tool), "--weights", str(weights), "--port", str(port)]
    # Freed memory goes back at once, so that what is resident is what is kept.
    env = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    with subprocess.Popen(
        command,
        cwd=repository,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        log = iter(process.stdout.readline, "")
        lines = []
        assert any(lines.append(line) or "The page is at" in line for line in log), lines
        yield process.pid, f"http://127.0.0.1:{port}/"
        process.terminate()
        process.stdout.read()
    assert process.returncode == 0


class Visitor:
    """One session, whose words and images nobody else has."""

    def __init__(self, number: int, address: str, folder: Path, predictor: TagCLIPPredictor):
        self.number, self.folder, self.predictor = number, folder, predictor
        self.client = client.Client(address, verbose=False, download_files=str(folder))

    def ask(self, number: int) -> None:
        """One question, answered as by the predictor alone; every fifth is saved."""
        words = [f"visitor {self.number} question {number} word {k}" for k in range(2 + number % 3)]
        pixels = picture(40 + self.number, 60 + number)
        pixels[0, 0] = self.number, number, 0
        path = self.folder / f"v{self.number}q{number}.png"
        Image.fromarray(pixels[:, :, ::-1]).save(path)
        alone = encode_image(self.predictor, path, ", ".join(words), "", Limits())
        expected = alone.predict(Settings(*SLIDERS[:3]), alone.size)["sem_seg_labels"]
        answer = self.client.predict(
            client.handle_file(str(path)), ", ".join(words), "", *SLIDERS, api_name="/segment"
        )
        # No picture holds such a word by chance: base64 has no spaces.
        assert set(re.findall(r"visitor \d+ question \d+ word \d+", str(answer))) == set(words)
        shown = scores_under_the_pointer(answer[1])
        assert [name.removeprefix("★ ") for name in shown["names"]] == words
        assert np.array_equal(shown["labels"][0], expected.numpy())
        if number % 5 == 0:
            _, summary = self.client.predict(api_name="/save")["value"]
            content = json.loads(Path(summary).read_text())
            assert (content["class_names"], content["image"]) == (words, path.name)


def resident(process: int) -> float:
    """MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


def test_two_hundred_questions_eight_at_a_time(
    server: tuple[int, str], weights: Path, tmp_path: Path
) -> None:
    process, address = server
    predictor = TagCLIPPredictor.from_checkpoint(weights)
    visitors = [Visitor(k, address, tmp_path, predictor) for k in range(VISITORS)]
    mib = []
    with ThreadPoolExecutor(VISITORS) as pool:
        for number in range(ROUNDS):
            list(pool.map(lambda visitor, n=number: visitor.ask(n), visitors))
            mib.append(resident(process))
    print(
        f"\n{VISITORS * ROUNDS} questions, {VISITORS} at a time: all answers right; "
        f"{mib[WARM_UP - 1]:.1f} MiB after {VISITORS * WARM_UP}, {mib[-1]:.1f} after all; "
        f"from {min(mib[WARM_UP:]):.1f} to {max(mib[WARM_UP:]):.1f} in between"
    )
    # Python collects what refers to itself now and then: up to 60 MiB pile up before.
    assert min(mib[-15:]) - mib[WARM_UP - 1] < ALLOWED_MIB
