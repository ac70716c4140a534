"""The web page in a real browser, as a visitor sees it. Its screenshot goes to tmp_path."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.pictures import picture
from helpers.tiny_checkpoint import save_tiny
from helpers.webdemo_server import Calls, served
from PIL import Image

from tagclip import TagCLIPPredictor

pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium here (Debian, Ubuntu: apt install chromium)"
)


@pytest.fixture
def tab() -> Iterator[sync_api.Page]:
    """An empty tab; no page may fail in it."""
    errors: list[sync_api.Error] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 1000})
        tab.set_default_timeout(30_000)
        tab.on("pageerror", lambda error: errors.append(error))
        yield tab
        browser.close()
    assert not errors


def test_a_visitor_segments_looks_closer_and_is_told_of_mistakes(
    tiny_cfg: CfgNode, tmp_path: Path, tab: sync_api.Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "output"))
    calls = Calls(predictor.model.backbone)
    Image.fromarray(picture(70, 95)[:, :, ::-1]).save(tmp_path / "a.png")
    labels = labels_of(predictor, tmp_path / "a.png")
    once = calls.count
    (folder := tmp_path / "served").mkdir()
    asked: set[str] = set()
    tab.on("request", lambda request: asked.add("/".join(request.url.split("/")[:3]) + "/"))
    with served(predictor, tmp_path / "a.png", folder, monkeypatch) as address:
        tab.goto(address)
        expect(tab.locator("#words textarea")).to_have_value("cat, grass")
        tab.locator("#segment").click()
        expect(tab.locator("#result tbody tr")).to_have_count(2)
        expect(tab.get_by_label("cat")).to_be_checked()
        expect(tab.get_by_label("grass")).to_be_checked()
        assert calls.count == 2 * once
        # A pixel that a wrong length of the rows would miss.
        rows, columns = np.indices(labels.shape)
        pixels = np.argwhere((labels == 0) & (labels.ravel()[rows * 70 + columns] == 1))
        hover(tab, pixels[len(pixels) // 2])
        expect(tab.locator("#result .tip .winner")).to_have_text("cat")
        expect(tab.locator("#result .tip .score")).to_have_count(2)
        tab.screenshot(path=tmp_path / "page.png", full_page=True)
        look_again(tab)
        assert calls.count == 2 * once
        tab.locator("#words textarea").fill(" , ")
        tab.locator("#segment").click()
        expect(tab.get_by_test_id("toast-body")).to_contain_text("words: found none, expected")
    assert {url for url in asked if url.startswith("http")} == {address}
    assert np.array(Image.open(tmp_path / "page.png")).std() > 10


@pytest.mark.parametrize("width", [400, 767, 768, 1200])
def test_the_result_is_beside_or_above_the_examples(
    tiny_cfg: CfgNode,
    tmp_path: Path,
    tab: sync_api.Page,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
) -> None:
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "output"))
    Image.fromarray(picture(70, 95)[:, :, ::-1]).save(tmp_path / "a.png")
    (folder := tmp_path / "served").mkdir()
    tab.set_viewport_size({"width": width, "height": 900})
    with served(predictor, tmp_path / "a.png", folder, monkeypatch) as address:
        tab.goto(address)
        tab.locator("#segment").click()
        expect(tab.locator("#result tbody tr")).to_have_count(2)
        question, result, examples = (
            tab.locator(name).bounding_box() for name in ("#segment", "#result", "#examples")
        )
        if width < 768:
            assert question["y"] < result["y"] < result["y"] + result["height"] < examples["y"]
            assert result["width"] > 0.7 * min(width, 640)
        else:
            assert result["x"] > question["x"] + question["width"] and result["y"] < question["y"]
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        cells = [cell.bounding_box() for cell in tab.locator("#examples td").all()]
        right = max(cell["x"] + cell["width"] for cell in cells)
        assert right <= examples["x"] + examples["width"], "nothing is cut off"


def test_a_tab_of_before_a_restart_is_told_to_reload(
    tiny_cfg: CfgNode, tmp_path: Path, tab: sync_api.Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a slider that is moved before anything was segmented nothing is said."""
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "output"))
    Image.fromarray(picture(70, 95)[:, :, ::-1]).save(tmp_path / "a.png")
    toast = tab.get_by_test_id("toast-body")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with served(predictor, tmp_path / "a.png", tmp_path / "first", monkeypatch) as address:
        tab.goto(address)
        with tab.expect_response("**/queue/join*"):
            move(tab, "seen-bias", "0.2")
        # A visitor's requests are answered one after the other.
        tab.locator("#segment").click()
        expect(tab.locator("#result tbody tr")).to_have_count(2)
        expect(toast).to_have_count(0)
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    with served(predictor, tmp_path / "a.png", tmp_path / "second", monkeypatch, port=port):
        move(tab, "seen-bias", "0.4")
        expect(toast).to_contain_text(
            "result: found none, expected one; press Segment first, or, if"
        )
        tab.get_by_label("cat").uncheck()
        expect(toast.get_by_text("reload the page and bring the picture again")).to_have_count(2)
        tab.locator("#segment").click()
        expect(toast).to_contain_text("image: found no file that was uploaded to this page")
        assert str(tmp_path) not in toast.inner_text() and "Error:" not in toast.inner_text()
        tab.reload()
        tab.locator("#segment").click()
        expect(tab.locator("#result tbody tr")).to_have_count(2)


def move(tab: sync_api.Page, slider: str, value: str) -> None:
    """Give a slider a value."""
    tab.locator(f"#{slider} input[type=number]").fill(value)
    tab.keyboard.press("Tab")


def hover(tab: sync_api.Page, pixel: np.ndarray) -> None:
    """Point at the middle of a pixel (y, x) of the 70 x 95 image."""
    box = tab.locator("#result .pictures img").first.bounding_box()
    y, x = (pixel + 0.5) / (70, 95)
    tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])


def look_again(tab: sync_api.Page) -> None:
    """Everything turns into other, cat becomes unseen, the result is saved."""
    segments = tab.locator("#result .pictures img").first
    shown = segments.get_attribute("src")
    move(tab, "background-threshold", "1")
    expect(tab.locator("#result tbody tr").last).to_contain_text("other100.0 %")
    assert segments.get_attribute("src") != shown
    expect(tab.locator("#result tr.unseen")).to_have_count(0)
    tab.get_by_label("cat").uncheck()
    expect(tab.locator("#result tr.unseen")).to_have_text("★ cat0.0 %")
    tab.locator("#save").click()
    with tab.expect_download() as download:
        tab.locator("#files a").first.click()
    assert (np.array(Image.open(download.value.path())) == 255).all()


def labels_of(predictor: TagCLIPPredictor, path: Path) -> np.ndarray:
    """(H, W) labels of the example's words, from an ordinary call."""
    predictor.set_vocabulary(["cat", "grass"])
    return predictor(path)["sem_seg_labels"].numpy()
