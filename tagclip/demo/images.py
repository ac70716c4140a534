"""Many images through one predictor or several processes; resumable, bad files are listed."""

from __future__ import annotations

import argparse
import hashlib
import logging
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from tqdm import tqdm

from tagclip.demo.image_note import ImageNote
from tagclip.demo.media import find_images
from tagclip.demo.result_json import (
    JSON_PERIOD,
    check_own_file,
    own_json,
    read_entries,
    write_entries,
)
from tagclip.demo.results import ResultKeeper, save_output
from tagclip.errors import ConfigError, DatasetError
from tagclip.predictor import TagCLIPPredictor
from tagclip.utils.parent import end_with_parent, leave_signals_to_parent, unsignalled
from tagclip.utils.png_notes import read_notes
from tagclip.utils.run_lock import RunLock
from tagclip.utils.stopping import explained
from tagclip.utils.text import json_text, one_line
from tagclip.visualization.prediction_page import draw_prediction

__all__ = ["BuildPredictor", "draw_images"]

logger = logging.getLogger(__name__)

BuildPredictor = Callable[[argparse.Namespace, str], TagCLIPPredictor]


@dataclass(frozen=True)
class _Outcome:
    """What became of an image: an entry of the json, or why there is none."""

    image: Path
    entry: dict[str, Any] | None = None
    error: str = ""
    skipped: bool = False
    seconds: float = 0.0


class _ImageJob:
    """Draws images, one call each."""

    def __init__(self, predictor: TagCLIPPredictor, args: argparse.Namespace) -> None:
        self.predictor, self.args = predictor, args
        self._keep = ResultKeeper(predictor.vocabulary, bool(args.json))
        self._made_with = _fingerprint(predictor, args.panel_size)

    def __call__(self, image: Path, picture: Path | None, known: dict[str, Any] | None) -> _Outcome:
        """Draw an image, unless ``known``, its entry of an earlier run, and its files are there.

        Raises:
            ConfigError: the result cannot be written.
        """
        start = time.perf_counter()
        try:
            stat = image.stat()
            note = ImageNote(f"{self._made_with} {stat.st_size} {stat.st_mtime_ns}", image)
            if not self.args.overwrite:
                if self._is_finished(picture, known, note):
                    return _Outcome(image, known, skipped=True)
                if other := self._result_of_other(picture, known, note):
                    text = (
                        f"{image}: found {other}, which is of another image of this name, expected "
                        "none; name another --output and --json, or give --overwrite"
                    )
                    return _Outcome(image, error=text)
            kept = self._draw(image, picture, str(note))
        except DatasetError as error:
            text = one_line(error)
            return _Outcome(image, error=text if str(image) in text else f"{image}: {text}")
        except OSError as error:
            return _Outcome(image, error=f"{image}: {error.strerror}")
        entry = {"file": str(image), **kept, "made_with": str(note)}
        return _Outcome(image, entry, seconds=time.perf_counter() - start)

    def _draw(self, image: Path, picture: Path | None, note: str) -> dict[str, Any]:
        pixels = self.predictor.read_image(image)
        prediction = self.predictor(pixels)
        labels = _labels_of(picture) if self.args.save_labels else None
        kept = self._keep(prediction, labels, note)
        if self.args.no_draw:
            return kept
        rgb, size = pixels[:, :, ::-1].copy(), self.args.panel_size
        page = draw_prediction(rgb, prediction, self.predictor.vocabulary, size)
        # Last: a picture is the sign that all is finished.
        save_output(picture, page, note, fast=True)
        return {"picture": str(picture), **kept}

    def _is_finished(
        self, picture: Path | None, known: dict[str, Any] | None, note: ImageNote
    ) -> bool:
        is_listed = not self.args.json or note.is_of((known or {}).get("made_with"))
        files = _written(picture, self.args)
        return is_listed and all(note.is_of(read_notes(file)[0]) for file in files)

    def _result_of_other(
        self, picture: Path | None, known: dict[str, Any] | None, note: ImageNote
    ) -> str:
        """What another image has there, in the place or beside that of this one; "" for nothing."""
        if self.args.json and note.is_of_other((known or {}).get("made_with")):
            return f"an entry in {self.args.json}"
        # Also one that this run does not write: it would stand beside what is of this image.
        files = [] if picture is None else [picture, _labels_of(picture)]
        return next((str(file) for file in files if note.is_of_other(read_notes(file)[0])), "")


def _written(picture: Path | None, args: argparse.Namespace) -> list[Path]:
    """Files that an image gets."""
    return [picture] * (not args.no_draw) + [_labels_of(picture) for _ in range(args.save_labels)]


def _labels_of(picture: Path) -> Path:
    return picture.with_name(f"{picture.stem}_labels.png")


def _fingerprint(predictor: TagCLIPPredictor, panel_size: int) -> str:
    """sha256 (hex) of all that a picture depends on, but its image."""
    cfg, asked, model = predictor.cfg.clone(), predictor.asked, predictor.model
    cfg.defrost()
    weights = Path(cfg.MODEL.WEIGHTS)
    content = [weights.read_bytes()] if weights.is_file() else []
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "", "", ""
    words = asked.all.partition_fingerprint, asked.shown.fingerprint
    # A config names files of CLIP, whose content may change; a checkpoint would notice.
    clip = model.backbone.weights_sha256, model.text_bank.fingerprint(asked.all)
    parts = [cfg.dump(), *words, *clip, panel_size]
    return hashlib.sha256(json_text(parts).encode() + b"".join(content)).hexdigest()


def draw_images(
    args: argparse.Namespace, build_predictor: BuildPredictor, processes: int
) -> list[str]:
    """Draw the images of a command line of ``tagclip segment``.

    Args:
        args: its arguments.
        build_predictor: (args, device) -> predictor; a function that other processes can import.
        processes: how many work at the same time, each with a model of its own.

    Returns:
        Of every image why it could not be read; "" if it was.

    Raises:
        TagCLIPError: an option, the config, the weights or the vocabulary are not in order, or
            another run writes to the output.
    """
    pairs = find_images(args.input, args.output)
    _check_written(pairs, args)
    pictures = [picture for _, picture in pairs if picture is not None]
    own = [image for image, _ in pairs] + pictures + [_labels_of(picture) for picture in pictures]
    check_own_file(args.json, own)
    with own_json(args.json), _own_output(args.output):
        return _draw_all(args, build_predictor, pairs, processes)


def _own_output(output: Path | None) -> AbstractContextManager:
    """Keep another run, whose labels would stand beside these pictures, from what is written."""
    if output is None:
        return nullcontext()
    is_file = output.suffix.lower() == ".png"
    return (
        RunLock(output.parent, "--output", output.name) if is_file else RunLock(output, "--output")
    )


def _draw_all(
    args: argparse.Namespace,
    build_predictor: BuildPredictor,
    pairs: list[tuple[Path, Path | None]],
    processes: int,
) -> list[str]:
    known = read_entries(args.json)
    by_file = {entry["file"]: entry for entry in known}
    tasks = [(image, picture, by_file.get(str(image))) for image, picture in pairs]
    outcomes: list[_Outcome] = []
    late: list[_Outcome] = []
    start, processes, written = time.perf_counter(), min(processes, len(tasks)), 0
    with explained(lambda: _what_is_there(outcomes, len(tasks), args)):
        try:
            for outcome in _outcomes(args, build_predictor, tasks, processes, late):
                outcomes.append(outcome)
                if len(outcomes) % JSON_PERIOD == 0:
                    write_entries(args.json, known, _entries(outcomes))
                    written = len(outcomes)
        finally:
            # The one at hand when a signal comes may be among both.
            there = {outcome.image for outcome in outcomes}
            outcomes += [outcome for outcome in late if outcome.image not in there]
            # What the last writing lacks; nothing if there is none, as of a model without weights.
            if len(outcomes) > written:
                write_entries(args.json, known, _entries(outcomes))
    errors, skipped = [o.error for o in outcomes], sum(o.skipped for o in outcomes)
    drawn = errors.count("") - skipped
    busy = sum(outcome.seconds for outcome in outcomes) / processes
    logger.info(
        "%d images in %.1f s with loading (%.2f images/s once loaded), results in %s",
        drawn, time.perf_counter() - start, drawn / busy if drawn else 0.0,
        args.json if args.no_draw and not args.save_labels else args.output,
    )  # fmt: skip
    if skipped:
        logger.info("%d finished images were left as they are; --overwrite redoes them", skipped)
    return errors


def _what_is_there(outcomes: list[_Outcome], total: int, args: argparse.Namespace) -> str:
    done = sum(not outcome.error for outcome in outcomes)
    goes_on = "the same command goes on with the others"
    if args.overwrite:
        goes_on = "the same command begins anew; less --overwrite it goes on with the others, "
        goes_on += "where they replace nothing of other images"
    return f"{done} of {total} images are finished and stay, {goes_on}"


def _entries(outcomes: list[_Outcome]) -> list[dict[str, Any]]:
    return [outcome.entry for outcome in outcomes if outcome.entry]


def _check_written(pairs: list[tuple[Path, Path | None]], args: argparse.Namespace) -> None:
    read = {os.path.realpath(image) for image, _ in pairs}
    written: dict[str, Path] = {}
    for image, picture in pairs:
        for file in _written(picture, args):
            place = os.path.realpath(file)
            if place in read:
                raise ConfigError(
                    f"--output: {file}, of {image}, would replace an image of this run; choose "
                    "another folder"
                )
            if (other := written.setdefault(place, image)) != image:
                raise ConfigError(
                    f"--output: {file} would be written for {other} and for {image}; segment one "
                    "of them alone, into a folder of its own, or rename it"
                )


def _outcomes(
    args: argparse.Namespace,
    build_predictor: BuildPredictor,
    tasks: list[tuple],
    processes: int,
    late: list[_Outcome],
) -> Iterator[_Outcome]:
    """In the order of the tasks; ``late`` gets those that others still finish after an error."""
    # disable=None: no bar unless stderr is a terminal.
    bar = {"total": len(tasks), "unit": "image", "disable": None}
    if processes <= 1:
        job = _ImageJob(build_predictor(args, ""), args)
        yield from tqdm((job(*task) for task in tasks), **bar)
        return
    context = multiprocessing.get_context("spawn")
    devices = context.Queue()
    for index in range(processes):
        devices.put(f"cuda:{index}" if args.num_gpus > 1 else "")
    threads = max(1, (os.cpu_count() or 1) // processes)
    start = (args, build_predictor, devices, threads)
    futures: deque[Future[_Outcome]] = deque()
    with ProcessPoolExecutor(processes, context, _start_process, start) as pool:
        try:
            with unsignalled():
                futures.extend(pool.submit(_run_task, task) for task in tasks)
            yield from tqdm(_in_order(futures), **bar)
        except BrokenProcessPool as error:
            raise ConfigError(
                f"--workers {processes}: one of them was killed, perhaps for lack of memory; "
                "start again with fewer: finished pictures stay"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
            ended = [future for future in futures if not future.cancelled()]
            late += [future.result() for future in ended if future.exception() is None]


def _in_order(futures: deque[Future[_Outcome]]) -> Iterator[_Outcome]:
    """Results; those that were handed out leave the queue."""
    while futures:
        yield futures[0].result()
        futures.popleft()


# Of a process of the pool: returns its job, which the first call builds.
_job: Callable[[], _ImageJob] | None = None


def _start_process(
    args: argparse.Namespace, build_predictor: BuildPredictor, devices: Queue, threads: int
) -> None:
    global _job
    end_with_parent()
    leave_signals_to_parent()
    torch.set_num_threads(threads)
    device = devices.get()
    # Not now: the pool hands on errors of tasks only.
    _job = cache(lambda: _ImageJob(build_predictor(args, device), args))


def _run_task(task: tuple) -> _Outcome:
    return _job()(*task)
