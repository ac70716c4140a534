"""tagclip/bulk/progress.py: what the log says where there is no terminal."""

from __future__ import annotations

import logging

import pytest

from tagclip.bulk import progress as module
from tagclip.bulk.inputs import InputFile
from tagclip.bulk.progress import Progress
from tagclip.bulk.shards import Shard, ShardResult


def shard(number: int, *names: str) -> Shard:
    return Shard(f"shard-{number:06}", tuple(InputFile(name, name, 1) for name in names))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as its only item."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_half_minute_with_rate_and_time_left(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    progress = Progress([shard(0, *"abcdefgh"), shard(1, *"ijkl")])
    # Models are loaded, which is no part of the rate.
    clock[0] += 1000
    with caplog.at_level(logging.INFO):
        progress.images(1)
        clock[0] += 29
        progress.images(1)
        assert not caplog.messages
        clock[0] += 1
        progress.images(1)
        # Of a shard that is done again.
        progress.images(-2)
        clock[0] += 30
        progress.images(5)
    assert caplog.messages == [
        "3 of 12 images, 0 of 2 shards, 0.1 images/s, 01:30 left",
        "6 of 12 images, 0 of 2 shards, 0.1 images/s, 01:00 left",
    ]


def test_images_of_archives_are_estimated_from_those_that_ended(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    progress = Progress([shard(number, f"{number}.tar") for number in range(4)])
    progress.images(1)
    with caplog.at_level(logging.INFO):
        clock[0] += 30
        progress.images(9)
        progress.shard(ShardResult("shard-000000", 10))
        clock[0] += 30
        progress.images(10)
    assert caplog.messages == [
        "10 images, 0 of 4 shards, 0.3 images/s",
        "20 of 40 images, 1 of 4 shards, 0.3 images/s, 01:00 left",
    ]
    progress.close()
