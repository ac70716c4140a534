"""Pictures that visitors bring are read in processes with bounded time and memory."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import reading_tasks
from helpers.pictures import picture
from PIL import Image

from tagclip.data.image_io import read_image
from tagclip.errors import DatasetError
from tagclip.projects.webdemo import reading
from tagclip.projects.webdemo.reading import read_pixels, read_size

NBYTES = 256 << 20


def unchecked() -> None:
    """Whoever asks still waits."""


def save(path: Path, form: str, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} if orientation != 1 else {}
    Image.fromarray(picture(70, 95)).save(path, form, **options)
    return path


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_a_picture_is_read_as_everywhere(tmp_path: Path, form: str) -> None:
    path = save(tmp_path / "a.bin", form)
    assert read_size(path, 0, unchecked) == (70, 95)
    found = read_pixels(path, 0, unchecked, NBYTES)
    assert np.array_equal(found, read_image(path, "BGR")) and found.flags.writeable


def test_a_turned_picture_is_upright(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", "JPEG", orientation=6)
    assert read_size(path, 0, unchecked) == (70, 95)
    found = read_pixels(path, 0, unchecked, NBYTES)
    assert found.shape == (95, 70, 3) and np.array_equal(found, read_image(path, "BGR"))


def test_what_cannot_be_read_is_said_as_everywhere(tmp_path: Path) -> None:
    """Once by the header, once behind it."""
    (bad := tmp_path / "bad.png").write_bytes(b"no picture")
    content = save(tmp_path / "a.png", "PNG").read_bytes()
    (cut := tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    assert read_size(cut, 0, unchecked) == (70, 95)
    for path, read in (
        (bad, lambda: read_size(bad, 0, unchecked)),
        (cut, lambda: read_pixels(cut, 0, unchecked, NBYTES)),
    ):
        with pytest.raises(DatasetError) as expected:
            read_image(path, name=str(path))
        with pytest.raises(DatasetError) as found:
            read()
        assert str(found.value) == str(expected.value)
    with pytest.raises(DatasetError, match="image has 95x70 pixels, INPUT.MAX_PIXELS allows 6000"):
        read_size(tmp_path / "a.png", 6000, unchecked)


@pytest.mark.parametrize("max_pixels", [25_000_000, 0])
def test_a_webp_of_all_pixels_that_are_allowed_is_read(tmp_path: Path, max_pixels: int) -> None:
    """Pillow takes 8 bytes for each to open it, and 4 more to read it."""
    path = tmp_path / "a.webp"
    Image.new("RGB", (6200, 4000), (200, 30, 40)).save(path, quality=50)
    assert read_size(path, max_pixels, unchecked) == (4000, 6200)
    found = read_pixels(path, max_pixels, unchecked, 1 << 30)
    assert np.array_equal(found, read_image(path, "BGR"))


@pytest.mark.parametrize("damaged", [True, False])
def test_a_webp_that_is_damaged_or_too_large_says_so(tmp_path: Path, damaged: bool) -> None:
    path = tmp_path / "a.webp"
    Image.new("RGB", (10, 10) if damaged else (10000, 5000)).save(path)
    if damaged:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DatasetError) as caught:
        read_size(path, 1_000_000, unchecked)
    assert str(caught.value) == (
        f"{path}: found a WebP that is damaged or has more than the 1000000 pixels that are read "
        "here, expected a whole one with fewer; save it anew as PNG or JPEG, and smaller"
    )


def test_formats_that_take_seconds_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", "JPEG2000")
    with pytest.raises(DatasetError, match=r"a\.jpg: found JPEG2000, expected one of AVIF, BMP, "):
        read_size(path, 0, unchecked)


@pytest.mark.parametrize(
    "task",
    [
        reading_tasks.work,
        reading_tasks.fill,
        reading_tasks.fill_in_library,
        reading_tasks.die,
    ],
)
def test_a_reading_ends_at_its_limits(task: Callable[..., None], tmp_path: Path) -> None:
    """Whatever keeps it at work; the message is the same, as the visitor can do the same."""
    with pytest.raises(DatasetError) as caught:
        reading._read(task, tmp_path / "a.png", 0, unchecked, 1, 64 << 20)
    assert str(caught.value) == (
        f"{tmp_path}/a.png: found a picture that takes more than 1 seconds or 64 MiB to be read, "
        "expected less; save it anew as PNG or JPEG"
    )
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("task", [reading_tasks.work, reading_tasks.wait])
def test_a_reading_that_nobody_waits_for_ends(task: Callable[..., None]) -> None:
    asked = []

    def check() -> None:
        asked.append(time.monotonic())
        if len(asked) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        reading._read(task, "a.png", 0, check, 3600, NBYTES)
    assert len(asked) == 3 and not multiprocessing.active_children()


def test_a_reading_gives_way_and_leaves_no_core() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    limits, nice = reading._read(reading_tasks.describe, "a.png", 0, unchecked, 7, NBYTES)
    assert limits == [(0, 0), (7, 7)] and nice == min(19, before + 10)
