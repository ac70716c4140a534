"""The web page of a tiny model, served for a test."""

from __future__ import annotations

import base64
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from tagclip import TagCLIPPredictor
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


@contextmanager
def served(
    predictor: TagCLIPPredictor, image: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Address of the page, with one example of two words."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")
    # What a user's environment might hold must not open the page to others.
    monkeypatch.setenv("GRADIO_SHARE", "True")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    examples = [(str(image), "cat, grass")]
    page = serve(predictor, examples, folder, port=port, max_upload_mb=1, wait=False)
    try:
        assert (page.share, page.server_name, page.analytics_enabled) == (False, "127.0.0.1", False)
        yield page.local_url
    finally:
        page.close(verbose=False)
