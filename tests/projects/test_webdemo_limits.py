"""What a visitor of the web page may send: so many bytes, so many pixels, no file of others."""

from __future__ import annotations

import os
from collections.abc import Callable
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
from tagclip.projects.webdemo.session import Arrivals, Limits, encode_image, find_upload


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


def test_what_has_arrived_is_forgotten_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not anybody asks for it."""
    monkeypatch.setattr("tagclip.projects.webdemo.session._LEAST_LOOKED", 10)
    arrivals, kept = Arrivals(), tmp_path / "kept.png"
    kept.touch()
    for number in range(200):
        arrivals.update([str(kept), str(tmp_path / f"{number}.png")])
        assert len(arrivals) <= 14 and set(arrivals.times) == arrivals
    assert arrivals.times[str(kept)] == 200


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


def make_link(uploads: Path) -> Path:
    (uploads / "link.png").symlink_to(uploads.parent / "private.png")
    return uploads / "link.png"


def make_inner_link(uploads: Path) -> Path:
    (uploads / "twin.png").symlink_to(uploads / "own" / "a.png")
    return uploads / "twin.png"


def make_linked_folder(uploads: Path) -> Path:
    (uploads / "away").symlink_to(uploads.parent)
    return uploads / "away" / "private.png"


def make_pipe(uploads: Path) -> Path:
    os.mkfifo(uploads / "pipe.png")
    return uploads / "pipe.png"


@pytest.mark.parametrize(
    "name",
    [
        lambda uploads: uploads.parent / "private.png",
        lambda uploads: uploads / ".." / "private.png",
        lambda uploads: uploads,
        lambda uploads: uploads / "none.png",
        lambda uploads: "/dev/zero",
        lambda uploads: f"{uploads}/a\0.png",
        lambda uploads: None,
        lambda uploads: ["own", "a.png"],
        make_link,
        make_inner_link,
        make_linked_folder,
        make_pipe,
    ],
)
def test_what_is_no_upload_is_not_opened(
    name: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All kinds end with the same words, whether there is such a file or not."""
    uploads = tmp_path / "uploads"
    (uploads / "own").mkdir(parents=True)
    for path in (uploads / "own" / "a.png", tmp_path / "private.png"):
        Image.new("RGB", (8, 8)).save(path)
    assert find_upload(str(uploads / "own" / "a.png"), uploads) == uploads / "own" / "a.png"
    path = name(uploads)
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("opened a file"))
    with pytest.raises(DatasetError) as caught:
        find_upload(str(path) if isinstance(path, Path) else path, uploads)
    assert str(caught.value) == (
        "image: found no file that was uploaded to this page, expected one; drop a file or choose "
        "an example, after a reload of the page if its server has been started anew"
    )


def test_a_request_for_a_file_beside_the_uploads_is_refused(
    tiny_cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running page is asked directly, as its own code never would."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    import httpx

    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "output"))
    image, folder, private = tmp_path / "a.png", tmp_path / "served", tmp_path / "private.png"
    for path in (image, private):
        Image.new("RGB", (70, 70)).save(path)
    folder.mkdir()
    (folder / "link.png").symlink_to(private)
    with served(predictor, image, folder, monkeypatch) as address:
        api = f"{address.rstrip('/')}/gradio_api"
        sent = httpx.post(f"{api}/upload", files={"files": ("b.png", image.read_bytes())})
        for path, words in (
            (sent.json()[0], "event: complete"),
            (str(private), "found no file that was uploaded"),
            (str(folder / "link.png"), "found no file that was uploaded"),
        ):
            asked = [{"path": path}, "cat", "", "both", 0.1, 0.0, 0.5]
            event = httpx.post(f"{api}/call/segment", json={"data": asked}).json()["event_id"]
            answer = httpx.get(f"{api}/call/segment/{event}", timeout=60).text
            assert words in answer, answer


def test_what_others_brought_or_saved_is_no_image(
    tiny_cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two visitors of the running page, the second of whom knows the paths of the first."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    import httpx
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "output"))
    example, own, folder = (tmp_path / name for name in ("a.png", "b.png", "served"))
    for path, size in ((example, 70), (own, 60)):
        Image.new("RGB", (size, size)).save(path)
    folder.mkdir()
    sliders = ("both", 0.1, 0.0, 0.5)

    def ask(client: Client, path: object) -> object:
        return client.predict(path, "cat, dog", "", *sliders, api_name="/segment")

    def files(name: str) -> list[Path]:
        return [path for path in folder.rglob(name) if path.is_file()]

    with served(predictor, example, folder, monkeypatch) as address:
        first, second = (Client(address, verbose=False) for _ in range(2))
        ask(first, handle_file(str(own)))
        (upload,) = files("b.png")
        before = set(files("*.png"))
        first.predict(api_name="/save")
        (saved,) = set(files("*.png")) - before
        for path in (upload, saved):
            with pytest.raises(AppError, match="found no file that was uploaded to this page"):
                ask(second, {"path": str(path)})
        ask(first, {"path": str(upload)})
        # An example is everybody's; the same content, brought by both, is both visitors'.
        ask(second, {"path": str(files("a.png")[0])})
        ask(second, handle_file(str(own)))
        assert files("b.png") == [upload]
        for client in (second, first, second):
            ask(client, {"path": str(upload)})
        third, fourth, fifth = (Client(address, verbose=False) for _ in range(3))
        with pytest.raises(AppError, match="found no file that was uploaded to this page"):
            ask(third, {"path": str(upload)})
        # Two who both bring it before either of them asks.
        for _ in range(2):
            sent = {"files": (own.name, own.read_bytes())}
            answer = httpx.post(f"{address.rstrip('/')}/gradio_api/upload", files=sent)
            assert answer.json() == [str(upload)]
        for client in (third, fourth, third):
            ask(client, {"path": str(upload)})
        with pytest.raises(AppError, match="found no file that was uploaded to this page"):
            ask(fifth, {"path": str(upload)})
