"""tools/demo.py on videos: every frame, what is written of it, and what of earlier ones stays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.demo_tool import save
from helpers.pictures import video
from helpers.timed_videos import timed_video
from PIL import Image

from tagclip import TagCLIPPredictor
from tagclip.demo.media import VideoFile
from tagclip.errors import ConfigError, DatasetError
from tagclip.utils.png_notes import read_notes


def test_a_video_without_pictures_ends_with_ctrl_c_and_keeps_all(
    run: Callable, tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = video(tmp_path / "v.avi"), tmp_path / "out"
    words = ["--input", path, "--save-labels", "--json", tmp_path / "r.json", "--no-draw"]
    # The video that is read is not replaced.
    assert run(*words, "--output", path) == 0
    assert sorted(os.listdir(tmp_path / "v_labels")) == [f"{n:06d}.png" for n in range(6)]
    predict, count = TagCLIPPredictor.__call__, iter(range(9))

    def stop(self: TagCLIPPredictor, frame: np.ndarray) -> Any:
        if next(count) == 3:
            raise KeyboardInterrupt
        return predict(self, frame)

    monkeypatch.setattr(TagCLIPPredictor, "__call__", stop)
    assert run(*words, "--overwrite") == 0
    assert os.listdir(out) == ["v_labels"] and len(os.listdir(out / "v_labels")) == 3
    assert len(json.loads((tmp_path / "r.json").read_text())["images"]) == 3


def frames_of(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


def test_every_frame_of_a_video_is_drawn(run: Callable, tmp_path: Path) -> None:
    path = video(tmp_path / "v.avi")
    assert run("--input", path) == 0
    assert os.listdir(tmp_path / "out") == ["v.mp4"]
    assert run("--video-input", path.rename(tmp_path / "street.bin")) == 0
    (tmp_path / "street.bin").rename(path)
    assert sorted(os.listdir(tmp_path / "out")) == ["street.mp4", "v.mp4"]
    capture = cv2.VideoCapture(str(tmp_path / "out" / "v.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 6 and capture.get(cv2.CAP_PROP_FPS) == 5
    assert capture.get(cv2.CAP_PROP_FRAME_WIDTH) > 1000
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"v\.avi: (cannot be opened|found no frame)"):
        run("--input", path)


@pytest.mark.parametrize("is_drawn", [True, False])
def test_labels_of_an_earlier_longer_video_do_not_stay(
    run: Callable, tmp_path: Path, is_drawn: bool
) -> None:
    """They would be taken for frames of this one. What nobody here has written stays."""
    path, labels = video(tmp_path / "v.avi"), tmp_path / "out" / "v_labels"
    words = ["--input", path, "--save-labels", *([] if is_drawn else ["--no-draw"])]
    assert run(*words) == 0
    frames = [f"{number:06d}.png" for number in range(6)]
    assert sorted(os.listdir(labels)) == frames
    for name in ("000007.png", "123456.png", "0000001.png", "notes.txt", "a00001.png"):
        (labels / name).write_bytes(b"old")
    assert run(*words, "--overwrite") == 0
    assert sorted(os.listdir(labels)) == sorted([*frames, "0000001.png", "notes.txt", "a00001.png"])


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], "v.mp4"),
        (["--output", "film.avi"], "film.avi"),
        (["--save-labels", "--no-draw"], "v_labels"),
    ],
)
def test_a_video_of_another_source_is_kept(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], found: str
) -> None:
    """Cameras name their files alike: 0001.mp4 of every card."""
    monkeypatch.chdir(tmp_path)
    words = ["--output", "out", *words]
    for name in ("monday", "tuesday"):
        (tmp_path / name).mkdir()
        video(tmp_path / name / "v.avi")
    assert run("monday/v.avi", *words) == 0
    place = Path(words[-1]) if found == "film.avi" else Path("out", found)
    first = {path: path.read_bytes() for path in (place, *place.rglob("*")) if path.is_file()}
    assert first
    match = f"--output: found {place} of an earlier run, expected none; .* --overwrite to replace"
    with pytest.raises(ConfigError, match=match):
        run("tuesday/v.avi", *words, "--json", "r.json")
    assert all(path.read_bytes() == content for path, content in first.items())
    assert not Path("r.json").exists() and not list(tmp_path.rglob(".*lock"))
    assert run("tuesday/v.avi", *words, "--output", "other") == 0
    assert run("tuesday/v.avi", *words, "--overwrite") == 0


def test_entries_of_another_video_of_the_name_are_kept(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, words = tmp_path / "r.json", ["v.avi", "--no-draw", "--json", tmp_path / "r.json"]
    for name in ("monday", "tuesday"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        video(Path("v.avi"))
        if name == "tuesday":
            before = result.read_bytes()
            match = f"--json {result}: found frames of v.avi of an earlier run, .* --overwrite to"
            with pytest.raises(ConfigError, match=match):
                run(*words)
            assert result.read_bytes() == before
            words.append("--overwrite")
        assert run(*words) == 0
    assert len(json.loads(result.read_text())["images"]) == 6


def test_a_video_does_not_stand_beside_labels_of_another(run: Callable, tmp_path: Path) -> None:
    path = video(tmp_path / "v.avi")
    assert run(path, "--save-labels", "--no-draw") == 0
    for more in ([], ["--overwrite"]):
        with pytest.raises(ConfigError, match="v_labels of an earlier run, which would stand bes"):
            run(path, *more)
    assert os.listdir(tmp_path / "out") == ["v_labels"]
    assert run(path, "--overwrite", "--save-labels") == 0


def test_what_a_killed_run_left_of_a_video_goes(run: Callable, tmp_path: Path) -> None:
    path, out = video(tmp_path / "v[1].avi"), tmp_path / "out"
    out.mkdir()
    kept = [".v[1].mp4.0123.tmp.mp4", ".v1.mp4.01234567.tmp.mp4", ".other.mp4.01234567.tmp.mp4"]
    for name in [".v[1].mp4.01234567.tmp.mp4", *kept]:
        (out / name).write_bytes(b"old")
    assert run("--input", path) == 0
    assert sorted(os.listdir(out)) == sorted([*kept, "v[1].mp4"])


@pytest.mark.parametrize("output", ["", "film.avi"])
def test_every_frame_gets_its_labels_and_its_entry(
    run: Callable, weights: Path, tmp_path: Path, output: str
) -> None:
    path, image, result = video(tmp_path / "v.avi"), save(tmp_path / "a.png"), tmp_path / "r.json"
    assert run("--input", image, "--json", result) == 0
    more = ["--output", tmp_path / "out" / output] if output else []
    for again in ([], ["--overwrite"]):
        assert run("--input", path, "--save-labels", "--json", result, *more, *again) == 0
    predictor = TagCLIPPredictor.from_checkpoint(weights)
    predictor.set_vocabulary(["cat", "zebra", "sky"])
    *entries, other = json.loads(result.read_text())["images"]
    assert other["file"] == str(image) and "frame" not in other
    assert [(e["file"], e["frame"]) for e in entries] == [(str(path), n) for n in range(6)]
    folder = tmp_path / "out" / f"{Path(output).stem or 'v'}_labels"
    assert sorted(os.listdir(folder)) == [f"{n:06d}.png" for n in range(6)]
    for entry, frame in zip(entries, frames_of(path), strict=True):
        expected = predictor(frame)["sem_seg_labels"].numpy()
        assert (np.array(Image.open(entry["labels"])) == expected).all()
        words = dict(enumerate(["cat", "zebra", "sky"]))
        found = {index: words[index] for index in np.unique(expected)}
        assert read_notes(entry["labels"]) == ("", found)
        assert entry["classes"][0]["share"] == pytest.approx(
            np.bincount(expected.ravel()).max() / expected.size, abs=1e-6
        )


def test_labels_and_entries_of_a_damaged_video_have_its_numbers(
    run: Callable, tmp_path: Path
) -> None:
    """Those of the broken frame go, too, if an earlier run wrote them."""
    path, result = video(tmp_path / "v.avi"), tmp_path / "r.json"
    words = ["--input", path, "--save-labels", "--json", result, "--no-draw", "--overwrite"]
    for broken, numbers in ((None, [0, 1, 2, 3, 4, 5]), (2, [0, 1, 3, 4, 5])):
        video(path, broken)
        assert run(*words) == 0
        entries = json.loads(result.read_text())["images"]
        names = [f"{number:06d}.png" for number in numbers]
        assert [entry["frame"] for entry in entries] == numbers
        assert [Path(entry["labels"]).name for entry in entries] == names
        assert sorted(os.listdir(tmp_path / "out" / "v_labels")) == names


@pytest.mark.parametrize("pause", [0, 10_000])
def test_a_video_of_uneven_frames_is_written_as_long_as_it_is(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, pause: int
) -> None:
    """A screen that stands still has no frames: where these are, one rate moves others."""
    times = [0, 60, 200, 250, *(pause + time for time in (300, 420, 460))]
    path, out = timed_video(tmp_path / "v.webm", times, "libvpx-vp9"), tmp_path / "out" / "v.mp4"
    assert run("--input", path) == 0
    capture = cv2.VideoCapture(str(out))
    seconds = capture.get(cv2.CAP_PROP_FRAME_COUNT) / capture.get(cv2.CAP_PROP_FPS)
    assert len(frames_of(out)) == 7
    assert seconds == pytest.approx(times[-1] / 1000 + 0.055, abs=0.05)
    said = f"{out}: frames of {path} are up to 4.3 s from their times, which keep to no rate"
    assert (said in "".join(capsys.readouterr())) == bool(pause)


def test_other_is_in_the_legend_of_a_video_if_it_can_occur(run: Callable, tmp_path: Path) -> None:
    path = video(tmp_path / "v.avi")
    heights = []
    for name, more in (("a", []), ("b", ["--context", "dog"]), ("c", ["--background", "0.01"])):
        assert run("--input", path, "--output", tmp_path / f"{name}.avi", *more) == 0
        frames = frames_of(tmp_path / f"{name}.avi")
        assert len({frame.shape for frame in frames}) == 1
        # The legend is below: "other" is one more column of it, with a hatched swatch.
        heights.append(int((frames[0][-40:-24] < 128).any(axis=2).sum()))
    assert heights[0] < heights[1] == pytest.approx(heights[2], rel=0.05)


def test_what_is_drawn_before_an_interruption_is_kept(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, count = video(tmp_path / "v.avi"), iter(range(9))
    write = VideoFile.write

    def stop(self: VideoFile, page: np.ndarray) -> None:
        if next(count) == 3:
            raise KeyboardInterrupt
        write(self, page)

    monkeypatch.setattr(VideoFile, "write", stop)
    assert run("--input", path, "--json", tmp_path / "r.json") == 0
    assert len(frames_of(tmp_path / "out" / "v.mp4")) == 3
    assert len(json.loads((tmp_path / "r.json").read_text())["images"]) == 4
