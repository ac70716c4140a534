"""When the frames of a video file are shown and how many it has, from its packets, undecoded.

What a container says of both may be a guess: .webm and .mkv hold no count, and browsers write them
without a rate or a duration.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import median

import cv2

from tagclip.utils.opencv import opencv_name

__all__ = ["FrameTimes"]

# Containers whose count of frames is no guess; that of .avi holds empty ones, too.
_WITH_COUNT = {".mp4", ".m4v", ".mov"}
# In succession; behind them there is no more, as behind the last frame.
_MOST_BROKEN = 1000
# Frames: those of .avi and .mpg may have the times in which they are stored.
_MOST_DRIFT = 3
# Seconds: sound may last longer than pictures.
_MOST_SILENT = 1.0


class FrameTimes:
    """Times, count and rate of the frames of a file.

    Attributes:
        length: how many frames there are, broken ones, too; 0 if it is not known.
        fps: the rate at which they last as long as in the file: its own, unless they keep to none.
        drift: seconds by which frames would be too late or early at that rate, at most.
        numbers: the time of a frame in ms, as cv2 has it -> its number; empty if not known.
        end: None, or (seconds at which frames end, seconds that the container says), too different.
    """

    def __init__(self, path: str, fps: float, count: int) -> None:
        """Read them.

        Args:
            path: a file that cv2 has opened.
            fps, count: what its container says.
        """
        times = _packet_times(path)
        has_count = Path(path).suffix.lower() in _WITH_COUNT or not times
        self.length = max(len(times), count if has_count else 0)
        known = sorted(time for time in times if time is not None)
        # Some .mpg hold few times; cv2 repeats one.
        is_known = len(known) > 1 and len(set(known)) == len(known)
        self.fps, self.drift = _rate(known, fps, len(times)) if is_known else (fps, 0.0)
        self.numbers = _numbers(known, fps, len(times)) if is_known else {}
        end, stated = known[-1] / 1000 if known else 0.0, count / fps
        self.end = (end, stated) if is_known and stated - end > _MOST_SILENT + 1 / fps else None


def _packet_times(path: str) -> list[float | None]:
    """Milliseconds in the order of the file; None of a broken one."""
    capture = cv2.VideoCapture(opencv_name(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    times: list[float | None] = []
    broken = 0
    while broken < _MOST_BROKEN:
        if capture.grab():
            times += [None] * broken + [capture.get(cv2.CAP_PROP_POS_MSEC)]
            broken = 0
        else:
            broken += 1
    capture.release()
    return times


def _rate(times: list[float], fps: float, count: int) -> tuple[float, float]:
    """Rate and drift."""
    seconds = [(time - times[0]) / 1000 for time in times]

    def drift(rate: float) -> float:
        return max(abs(second - number / rate) for number, second in enumerate(seconds))

    broken = count - len(times)
    if drift(fps) <= (_MOST_DRIFT + broken) / fps:
        return fps, 0.0
    # Nobody knows how long the last one lasts.
    last = median(after - before for before, after in pairwise(seconds))
    rate = len(times) / (seconds[-1] + last)
    return rate, drift(rate)


def _numbers(times: list[float], fps: float, count: int) -> dict[float, int]:
    numbers = list(range(count))
    if len(times) < count:
        # The times of broken packets are not known: the others leave their places free.
        numbers = [round(time / 1000 * fps) for time in times]
        if len(set(numbers)) < len(numbers) or numbers[-1] != count - 1:
            return {}
    return dict(zip(times, numbers, strict=True))
