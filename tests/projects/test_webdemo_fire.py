"""The web page under fire: 200 questions, 8 visitors at a time, each gets the own answer."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.pictures import picture
from helpers.webdemo_server import findable_weights, scores_under_the_pointer, served_alone
from PIL import Image

from tagclip import TagCLIPPredictor
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
    return findable_weights(tiny_cfg, tmp_path)


@pytest.fixture
def server(weights: Path) -> Iterator[tuple[int, str]]:
    """Process id and address of the page."""
    with served_alone(weights) as found:
        yield found


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
