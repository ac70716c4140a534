"""Videos whose containers do not know how many frames there are, or when; damaged ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import video
from helpers.timed_videos import damage, number_of, timed_video, without_times

from tagclip.demo.media import Video

# 30 to 110 ms after each other, as a browser records them.
UNEVEN = [0, *np.cumsum(np.random.default_rng(0).integers(30, 110, 39)).tolist()]
EVEN = [40 * number for number in range(40)]
VP9 = "libvpx-vp9"


@pytest.mark.parametrize("kind", ["whole", "live", "without times"])
def test_an_uneven_video_lasts_as_long_as_it_does(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """cv2 finds 25 or 1000 frames/s in it, and makes a count of them."""
    live = {"live": "1"} if kind == "live" else {}
    path = timed_video(tmp_path / "v.webm", UNEVEN, VP9, **live)
    if kind == "without times":
        without_times(path)
    read = Video(str(path))
    assert read.length / read.fps == pytest.approx(UNEVEN[-1] / 1000, abs=0.11)
    assert [(number, number_of(frame)) for number, frame in read] == [(n, n) for n in range(40)]
    assert (read.length, caplog.text) == (40, "") and read.drift < 0.5


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("v.webm", VP9, {}),
        ("v.mkv", "libx264", {}),
        ("v.mp4", "libx264", {}),
        # Their frames have the times of others, or none.
        ("v.avi", "mpeg4", {"bf": "2"}),
        ("v.mpg", "mpeg2video", {"bf": "2"}),
    ],
)
def test_an_even_video_keeps_its_rate(
    tmp_path: Path, name: str, codec: str, options: dict, caplog: pytest.LogCaptureFixture
) -> None:
    read = Video(str(timed_video(tmp_path / name, EVEN, codec, **options)))
    assert (read.fps, read.drift, read.length) == (25, 0, 40)
    assert [(number, number_of(frame)) for number, frame in read] == [(n, n) for n in range(40)]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("name", "codec", "times"),
    [
        ("v.mp4", "mpeg4", EVEN),
        ("v.mp4", "mpeg4", UNEVEN),
        ("v.webm", VP9, UNEVEN),
        # Of this damage cv2 finds no packet.
        ("v.mp4", "libx264", EVEN),
    ],
)
@pytest.mark.parametrize("broken", [0, 5])
def test_frames_behind_a_broken_one_keep_their_numbers(
    tmp_path: Path,
    name: str,
    codec: str,
    times: list[int],
    broken: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = damage(timed_video(tmp_path / name, times, codec, g="1"), broken)
    read = Video(str(path))
    found = [(number, number_of(frame)) for number, frame in read]
    assert found == [(n, n) for n in range(40) if n != broken]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path}: found 39 frames that can be decoded, expected 40; the others are left out "
        "(damaged, or trimmed away)"
    )


def test_frames_of_avi_keep_their_numbers(tmp_path: Path) -> None:
    read = Video(str(video(tmp_path / "v.avi", broken=2)))
    assert [number for number, _ in read] == [0, 1, 3, 4, 5]


def test_numbers_that_nothing_tells_are_said_to_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = damage(timed_video(tmp_path / "v.avi", EVEN, "mpeg4", bf="2"), 20)
    assert [number for number, _ in Video(str(path))] == [*range(39)]
    assert caplog.messages == [
        f"{path}: found 39 frames that can be decoded, expected 40; the others are left out "
        "(damaged, or trimmed away), and the numbers count those that are there"
    ]


def test_a_video_that_ends_before_its_header_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = timed_video(tmp_path / "v.webm", UNEVEN, VP9)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    read = Video(str(path))
    end, lasts = UNEVEN[read.length - 1] / 1000, UNEVEN[-1] / 1000 + 0.04
    assert 0 < read.length < 20
    assert caplog.messages == [
        f"{path}: the last frame is at {end:.1f} s, its header says that it lasts {lasts:.1f} s; "
        "the end may be missing"
    ]
