"""Videos that the demo writes: playable in a browser with PyAV, and without it said to be not."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers.full_disk import largest_file
from helpers.pictures import picture

from tagclip.demo import media
from tagclip.demo.media import VideoFile, find_images
from tagclip.demo.whole_video import check_video
from tagclip.errors import ConfigError, OutputError

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


def pages() -> list[np.ndarray]:
    """Four RGB pictures of one odd size."""
    return [picture(71, 129, seed)[:, :, ::-1].copy() for seed in range(4)]


def written(path: Path, pictures: Sequence[np.ndarray], fps: float = 12.5) -> Path:
    with VideoFile(path, fps) as file:
        for each in pictures:
            file.write(each)
    return path


@pytest.fixture
def without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "find_spec", lambda name: None)


def test_an_output_that_holds_all_images_is_named(tmp_path: Path) -> None:
    """Its own files are no input, so that there would be none; the folder is not empty."""
    (tmp_path / "p" / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.png", "sub/c.mp4"):
        (tmp_path / "p" / name).write_bytes(b"")
    folder, below = tmp_path / "p", tmp_path / "p" / "sub"
    for text, output, found in (
        (folder, folder, "2 images"),
        (below, folder, "1 image"),
        (folder / "*.jpg", folder, "1 image"),
    ):
        with pytest.raises(ConfigError) as error:
            find_images([str(text)], output)
        assert str(error.value) == (
            f"IMAGE {text}: found {found}, all within --output {output}, whose files are no "
            "input, expected images elsewhere; give another --output, or move the images"
        )
    assert [image for image, _ in find_images([str(folder)], below)] == [folder / "a.jpg"]


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_a_browser_can_play_it_and_every_run_writes_the_same(tmp_path: Path, name: str) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install '.[video]'")
    first, second = (written(tmp_path / part / name, pages()) for part in "xy")
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in first.parent.iterdir()] == [name]
    with av.open(str(first)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name in ("vp9", "libvpx-vp9")
        assert (stream.average_rate, stream.width, stream.height) == (12.5, 128, 70)
        assert stream.codec_context.pix_fmt == "yuv420p"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for frame, page in zip(frames, pages(), strict=True):
        assert np.abs(frame.astype(int) - page[:70, :128]).mean() < 6


def test_colours_survive(tmp_path: Path) -> None:
    """Those of classes, as a player shows them: a wrong matrix would shift them by 10 or more."""
    pytest.importorskip("av", reason="PyAV is not installed: pip install '.[video]'")
    for color in ([200, 30, 30], [20, 160, 60], [10, 70, 220], [250, 240, 30]):
        page = np.full((64, 64, 3), color, np.uint8)
        capture = cv2.VideoCapture(str(written(tmp_path / "a.mp4", [page] * 3)))
        frame = capture.read()[1][:, :, ::-1]
        assert np.abs(frame.astype(int) - color).max() <= 4, color


def test_chromium_plays_it(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed: pip install '.[video]'")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium here (Debian, Ubuntu: apt install chromium)")
    for name in ("a.mp4", "a.webm"):
        written(tmp_path / name, pages())
    (tmp_path / "page.html").write_text("<video src=a.mp4></video><video src=a.webm></video>")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(f"file://{tmp_path}/page.html")
        for number in range(2):
            video = tab.locator("video").nth(number)
            video.evaluate("v => { v.muted = true; return v.play(); }")
            tab.wait_for_function(f"document.querySelectorAll('video')[{number}].ended")
            found = video.evaluate("v => [v.videoWidth, v.videoHeight, v.duration.toFixed(2)]")
            assert found == [128, 70, "0.32"]
        browser.close()


def test_without_pyav_one_line_says_that_browsers_may_not_play_it(
    tmp_path: Path, without_pyav: None, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.mp4", "a.avi"):
        capture = cv2.VideoCapture(str(written(tmp_path / name, pages())))
        assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 4
        assert capture.get(cv2.CAP_PROP_FPS) == 12.5
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}/a.mp4: a browser may not play it; for one that does, pip install av"
    )
    with pytest.raises(ConfigError, match=r"a\.webm: found no PyAV, .* pip install av, or"):
        VideoFile(tmp_path / "a.webm", 5)
    with pytest.raises(ConfigError, match=r"a\.wmv: expected a folder or one of \.avi, .*\.webm"):
        VideoFile(tmp_path / "a.wmv", 5)


@pytest.mark.parametrize("fps", [119.9273, 29.97003, 240.005, 7.123456])
def test_a_video_has_the_rate_of_another(tmp_path: Path, without_pyav: None, fps: float) -> None:
    """Averages of phones are no short fractions."""
    capture = cv2.VideoCapture(str(written(tmp_path / "a.mp4", pages(), fps)))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(fps, abs=0.01)


@pytest.mark.parametrize("moment", ["open", "write", "close"])
def test_a_disk_that_fills_up_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def build(path: Path, fps: float, size: tuple[int, int]) -> SimpleNamespace:
        path.write_bytes(b"begun")
        calls = {"open": print, "write": lambda _: None, "close": lambda: None}
        calls[moment] = fail
        calls["open"]("opened")
        return SimpleNamespace(write=calls["write"], close=calls["close"])

    monkeypatch.setattr(media, "_Cv2Writer", build)
    with pytest.raises(OutputError, match=r"a\.avi: cannot be written \(No space left"):
        written(tmp_path / "a.avi", pages())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.avi", "a.mp4", "pyav.mp4", "pyav.webm"])
def test_a_disk_that_is_full_at_any_byte_leaves_the_earlier_video(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cv2 says nothing of a write that fails; the frames of an .avi are there without its end."""
    if name.startswith("pyav"):
        pytest.importorskip("av", reason="PyAV is not installed: pip install '.[video]'")
    else:
        monkeypatch.setattr(media, "find_spec", lambda name: None)
    content = written(tmp_path / name, pages()).read_bytes()
    size, step = len(content), len(content) // 9
    for limit in (0, 1, *range(step, size, step), size - 8, size - 1):
        with largest_file(limit), pytest.raises(OutputError) as error:
            written(tmp_path / name, pages())
        assert str(error.value).startswith(f"{tmp_path / name}: cannot be written ("), limit
        assert (tmp_path / name).read_bytes() == content
        assert [path.name for path in tmp_path.iterdir()] == [name]
    with largest_file(size):
        written(tmp_path / name, pages())


def test_nothing_is_muxed_behind_what_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second packet behind a header that could not be written ends the whole process."""
    av, packets = pytest.importorskip("av", reason="PyAV: pip install '.[video]'"), []

    class Full(media._PyavWriter):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            self._container = SimpleNamespace(mux=self.fail, close=self._container.close)

        def fail(self, packet: object) -> None:
            packets.append(packet)
            raise av.OSError(28, "No space left on device")

    monkeypatch.setattr(media, "_PyavWriter", Full)
    # The encoder hands out the first packet some 25 frames later, and then one per frame.
    with pytest.raises(OutputError, match=r"a\.mp4: cannot be written \(No space left"):
        written(tmp_path / "a.mp4", pages() * 10)
    assert len(packets) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("frames", "size", "found"),
    [
        (5, (128, 70), "found 4 frames of 128 x 70 pixels when it was read again, expected 5 of"),
        (4, (128, 72), "found 4 frames of 128 x 70 pixels when it was read again, expected 4 of"),
    ],
)
def test_a_video_that_holds_something_else(
    tmp_path: Path, frames: int, size: tuple[int, int], found: str
) -> None:
    path = written(tmp_path / "a.avi", pages())
    check_video(path, 4, (128, 70))
    with pytest.raises(OSError, match=found):
        check_video(path, frames, size)


def test_pyav_says_what_is_wrong_with_a_place(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed: pip install '.[video]'")
    file = VideoFile(tmp_path / "gone" / "a.mp4", 5)
    with pytest.raises(OutputError, match=r"a\.mp4: cannot be written \(No such file"), file:
        (tmp_path / "gone").rmdir()
        file.write(pages()[0])
