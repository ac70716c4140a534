"""What a visitor of the web page may send: so many bytes, so many pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode
from helpers.pictures import huge_png
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import load_tool
from helpers.webdemo_server import served
from PIL import Image

from tagclip import TagCLIPPredictor
from tagclip.errors import DatasetError
from tagclip.projects.webdemo.session import Limits, encode_image


def test_the_tool_limits_pixels(tiny_cfg: CfgNode, repository: Path, tmp_path: Path) -> None:
    """25 megapixels, less than elsewhere; the file announces more and is not decoded."""
    tool = load_tool(repository / "projects" / "WebDemo" / "serve.py")
    weights = save_tiny(tiny_cfg, tmp_path / "output")
    predictor = TagCLIPPredictor.from_checkpoint(weights, tool.OPTS)
    path = tmp_path / "huge.png"
    path.write_bytes(huge_png(5001))
    with pytest.raises(DatasetError, match="5001x5001 pixels, INPUT.MAX_PIXELS allows 25000000"):
        encode_image(predictor, path, "cat", "", Limits())
    assert tool.parse_args([]).max_upload_mb == 20


def test_the_server_limits_bytes(
    tiny_cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file above the limit is refused while it arrives, and leaves nothing behind."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    import httpx

    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "output"))
    image, folder = tmp_path / "a.png", tmp_path / "served"
    Image.new("RGB", (70, 70)).save(image)
    folder.mkdir()
    with served(predictor, image, folder, monkeypatch) as address:
        before = {path for path in folder.rglob("*") if path.is_file()}
        for size, is_taken in ((1000, True), (3 << 20, False)):
            files = {"files": ("b.png", bytes(size))}
            answer = httpx.post(f"{address.rstrip('/')}/gradio_api/upload", files=files)
            assert (answer.status_code == 200) == is_taken, (size, answer.status_code)
        new = {path for path in folder.rglob("*") if path.is_file()} - before
        assert [path.stat().st_size for path in new] == [1000]
