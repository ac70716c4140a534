"""Every frame of a video or a camera: drawn into a video or a window, labels and json beside it."""

from __future__ import annotations

import argparse
import glob
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from tagclip.demo.images import BuildPredictor
from tagclip.demo.media import Video, VideoFile
from tagclip.demo.result_json import (
    JSON_PERIOD,
    check_own_file,
    own_json,
    read_entries,
    write_entries,
)
from tagclip.demo.results import ResultKeeper
from tagclip.errors import ConfigError
from tagclip.predictor import TagCLIPPredictor
from tagclip.utils.files import remove_leftovers
from tagclip.utils.run_lock import RunLock
from tagclip.utils.stopping import StopRequest
from tagclip.visualization.prediction_page import draw_prediction

__all__ = ["draw_video"]

logger = logging.getLogger(__name__)

# Seconds that are seen.
_MOST_DRIFT = 0.5


def draw_video(
    args: argparse.Namespace, source: str | int, build_predictor: BuildPredictor
) -> None:
    """Draw what a command line of ``tagclip segment`` asks for.

    Without ``output`` it is a window, with ``no_draw`` nothing. Labels of frame N are
    ``NAME_labels/N.png`` beside the video, with six digits from 000000; broken frames have none,
    and their numbers are left out where the file lets one know which they are. What an earlier run
    wrote, perhaps of another video of this name, is replaced with ``overwrite`` alone, and then
    whole: its other frames go. The json has an entry with ``frame`` for each.

    After SIGTERM, SIGHUP or a first Ctrl-C the frame at work is finished, and with it what is
    written: a whole video, if a shorter one. A camera is ended in this way.

    Args:
        args: its arguments.
        source: a file, or the number of a camera.
        build_predictor: (args, device) -> predictor.

    Raises:
        KeyboardInterrupt: after Ctrl-C; says how many frames are there.
        TagCLIPError: the source cannot be opened, something is there or cannot be written, or an
            option, the config, the weights or the vocabulary are not in order.
    """
    with own_json(args.json):
        job = _VideoJob(args, source)
        with job.own_video():
            job.check_nothing_lost()
            job.remove_leftovers()
            _draw(args, source, job, build_predictor(args, ""))


def _draw(
    args: argparse.Namespace, source: str | int, job: _VideoJob, predictor: TagCLIPPredictor
) -> None:
    start, written = time.perf_counter(), 0
    with StopRequest("this frame") as stop:
        try:
            with job.target as target:
                for page in job.pages(predictor):
                    if len(job.entries) % JSON_PERIOD == 0:
                        write_entries(args.json, job.known, job.entries)
                        written = len(job.entries)
                    if target is not None:
                        target.write(page)
                    elif page is not None and _is_closed(page):
                        break
                    if stop.number:
                        break
        finally:
            if len(job.entries) > written:
                write_entries(args.json, job.known, job.entries)
    job.remove_other_labels()
    if job.path is not None and not args.no_draw:
        logger.info("Written: %s", job.path)
    seconds, count = time.perf_counter() - start, len(job.entries)
    logger.info("%d frames in %.1f s (%.2f frames/s)", count, seconds, count / seconds)
    if stop.number and isinstance(source, str):
        total = f" of {job.video.length}" if job.video.length else ""
        places = " and ".join(map(str, job.places())) or "a window"
        more = " with --overwrite" * bool(job.written() or args.json)
        text = f"{count}{total} frames are in {places}; the same command{more} begins anew"
        if stop.number == signal.SIGINT:
            raise KeyboardInterrupt(text)
        logger.warning("Stopped by %s: %s", signal.Signals(stop.number).name, text)


class _VideoJob:
    def __init__(self, args: argparse.Namespace, source: str | int) -> None:
        self.args, self.video, self.path = args, Video(source), None
        # The video to write, or None for a window, or for nothing, which Ctrl-C ends.
        self.target: VideoFile | nullcontext[None] | suppress = (
            suppress(KeyboardInterrupt) if args.no_draw else nullcontext()
        )
        used = [Path(source)] if isinstance(source, str) else []
        if args.output is not None:
            stem = Path(source).stem if isinstance(source, str) else "webcam"
            is_file = bool(args.output.suffix)
            self.path = args.output if is_file else args.output / f"{stem}.mp4"
            if not args.no_draw:
                if used and self.path.resolve() == used[0].resolve():
                    raise ConfigError(
                        f"--output: {self.path} would replace the video that is read; choose "
                        "another name"
                    )
                self.target = VideoFile(self.path, self.video.fps)
                if self.video.drift > _MOST_DRIFT:
                    logger.warning(
                        "%s: frames of %s are up to %.1f s from their times, which keep to no "
                        "rate; a video is written with their mean, %.2f frames/s",
                        self.path, source, self.video.drift, self.video.fps,
                    )  # fmt: skip
                used.append(self.path)
            if args.save_labels and args.json and args.json.suffix.lower() == ".png":
                used.append(self._labels_folder / args.json.name)
        check_own_file(args.json, used)
        self.known = read_entries(args.json)
        self.entries: list[dict] = []

    @property
    def _labels_folder(self) -> Path:
        return self.path.with_name(f"{self.path.stem}_labels")

    @property
    def _label_files(self) -> Iterator[Path]:
        return self._labels_folder.glob("[0-9]" * 6 + ".png")

    def own_video(self) -> AbstractContextManager:
        """Keep another run from the video, or its labels, that are written."""
        has_path = self.path is not None
        return RunLock(self.path.parent, "--output", self.path.name) if has_path else nullcontext()

    def check_nothing_lost(self) -> None:
        """Refuse to replace what an earlier run wrote: nobody knows whether of the same video.

        Raises:
            ConfigError: names what is there.
        """
        found = next(iter(self.written()), None)
        if found is not None and not self.args.overwrite:
            raise ConfigError(
                f"--output: found {found} of an earlier run, expected none; name another, or give "
                "--overwrite to replace it"
            )
        has_entries = any(e["file"] == self.video.name and "frame" in e for e in self.known)
        if has_entries and not self.args.overwrite:
            raise ConfigError(
                f"--json {self.args.json}: found frames of {self.video.name} of an earlier run, "
                "expected none; name another, or give --overwrite to replace them"
            )
        has_path = self.path is not None and not self.args.save_labels
        if has_path and any(self._label_files):
            raise ConfigError(
                f"--output: found {self._labels_folder} of an earlier run, which would stand "
                "beside another video, expected none; name another, or give --save-labels, too"
            )

    def remove_leftovers(self) -> None:
        """Remove what killed runs left of this video; nobody else is writing it."""
        if isinstance(self.target, VideoFile):
            remove_leftovers(self.path.parent, glob.escape(self.path.name))

    def remove_other_labels(self) -> None:
        """Remove frames that an earlier run alone has: they would be taken for those of this one.

        Raises:
            ConfigError: one cannot be removed.
        """
        if not self.args.save_labels:
            return
        own = {entry["frame"] for entry in self.entries}
        for path in self._label_files:
            try:
                if int(path.stem) not in own:
                    path.unlink()
            except OSError as error:
                raise ConfigError(
                    f"--save-labels: {path} of an earlier run cannot be removed "
                    f"({error.strerror}); remove it, or choose another --output"
                ) from error

    def written(self) -> list[Path]:
        """The video and the folder of labels, of those that this run writes, that are there."""
        video = [self.path] if self.path is not None and not self.args.no_draw else []
        labels = [self._labels_folder] if self.args.save_labels and any(self._label_files) else []
        return [path for path in video if path.exists()] + labels

    def places(self) -> Iterator[Path]:
        """What there is of this run."""
        yield from self.written()
        if self.args.json:
            yield self.args.json

    def pages(self, predictor: TagCLIPPredictor) -> Iterator[np.ndarray | None]:
        """Predict each frame, save its labels and draw it; None where nothing is drawn."""
        vocabulary = predictor.vocabulary
        keep = ResultKeeper(vocabulary, bool(self.args.json))
        # One legend for all frames.
        listed = [*range(len(vocabulary)), *[-1] * predictor.can_be_other]
        total = self.video.length or None
        for number, frame in tqdm(self.video, total=total, unit="frame", disable=None):
            prediction = predictor(frame)
            entry = {"file": self.video.name, "frame": number}
            name = f"{number:06d}.png"
            labels = self._labels_folder / name if self.args.save_labels else None
            self.entries.append(entry | keep(prediction, labels))
            rgb, size = frame[:, :, ::-1].copy(), self.args.panel_size
            is_drawn = not self.args.no_draw
            yield draw_prediction(rgb, prediction, vocabulary, size, listed) if is_drawn else None


def _is_closed(page: np.ndarray) -> bool:
    """Show a page; True if q or Escape was pressed."""
    cv2.imshow("TagCLIP (q ends)", page[:, :, ::-1])
    if cv2.waitKey(1) & 0xFF not in (ord("q"), 27):
        return False
    cv2.destroyAllWindows()
    return True
