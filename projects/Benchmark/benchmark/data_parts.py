"""Parts of a benchmark that need files: text cache and evaluator."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog

from tagclip.data.label_io import read_label
from tagclip.data.protocol import Protocol
from tagclip.evaluation.evaluator import ZeroShotSemSegEvaluator
from tagclip.modeling.clip.text_bank import TextBank
from tagclip.projects.benchmark.measure import alternate, seconds
from tagclip.projects.benchmark.naive import naive_confusion
from tagclip.projects.benchmark.result import Bar, Result, Row
from tagclip.projects.benchmark.subject import Subject, rectangles

__all__ = ["evaluator", "text"]

# Prompts of the released way, one text forward of full length each, that are timed.
_SAMPLE = 8


def text(subject: Subject, runs: int) -> Result:
    """Class vectors: encoded, read from the cache, and one uncut prompt at a time."""
    vocabulary = subject.vocabulary(subject.scale.classes)
    with tempfile.TemporaryDirectory() as folder:
        cfg = subject.cfg.clone()
        cfg.merge_from_list(["MODEL.CLIP.TEXT_CACHE", folder])
        first, second = (TextBank(cfg).to(subject.device) for _ in range(2))
        # Built before the clock starts.
        tower = first.source.text_tower().to(subject.device)
        encoded = seconds(partial(first, vocabulary), subject.device)
        cached = seconds(partial(second, vocabulary), subject.device)
        if not torch.equal(first(vocabulary), second(vocabulary)):
            raise RuntimeError("the text cache gave back other vectors")
    prompts = len(first.templates) * len(vocabulary.prompts)
    ids = torch.zeros(1, first.source.context_length, dtype=torch.long, device=subject.device)
    one = torch.no_grad()(partial(tower.encode_text, ids))
    uncut = alternate({"one": one}, _SAMPLE, subject.device)["one"].median * prompts
    name = f"{prompts} prompts"
    rows = [
        Row.single("text", f"{name}, first time", encoded, "s"),
        Row.single("text", f"{name}, second time, from the cache", 1000 * cached, "ms"),
        Row.single("text", f"{name}, uncut, one by one (from {_SAMPLE})", uncut, "s"),
        Row.single("text", "text forwards, first time", first.num_text_forwards, "count"),
        Row.single("text", "text forwards, second time", second.num_text_forwards, "count"),
    ]
    bar = Bar(
        f"text forwards of {name}, second time",
        "every run",
        0,
        None,
        second.num_text_forwards,
        "count",
    )
    return Result(rows, [bar])


def evaluator(subject: Subject, runs: int) -> Result:
    """One image in the evaluator; what it holds after one image and after many."""
    vocabulary = Protocol(subject.cfg).asked(subject.dataset)
    height, width = subject.scale.photo
    # Rectangles of 12 classes, as many as an image may well show.
    truth = torch.from_numpy(rectangles(len(vocabulary), (height, width))).long()
    scores = torch.full((len(vocabulary), height, width), 0.1)
    scores.scatter_(0, truth.clamp(max=len(vocabulary) - 1)[None], 0.9)
    output = {"sem_seg_labels": scores.argmax(dim=0).to(torch.int16), "trusty": scores[0].half()}
    sample = DatasetCatalog.get(subject.dataset)[0]
    measured = ZeroShotSemSegEvaluator(subject.dataset, vocabulary=vocabulary, distributed=False)
    process = partial(measured.process, [sample], [output])
    process()
    held = _held_bytes(measured)
    times = alternate(
        {
            "lean": process,
            "naive": lambda: naive_confusion(scores, read_label(sample["sem_seg_file_name"])),
        },
        10 * runs,
    )
    grown = _held_bytes(measured) - held
    images = 10 * runs + 2
    name = f"{len(vocabulary)} classes, {width}x{height}"
    rows = [
        Row.timed("evaluator", f"{name}, labels", times["lean"]),
        Row.timed("evaluator", f"{name}, released: scores on the CPU, RLE", times["naive"]),
        Row.single("evaluator", f"bytes held more after {images} images", grown, "count"),
    ]
    bars = [
        Bar(f"evaluator, {name}", "RLE and scores", 5, None, rows[0].value, "ms"),
        Bar("evaluator, growth with images", "14-20 kB each", 0, None, grown, "count"),
    ]
    return Result(rows, bars)


def _held_bytes(owner: Any) -> int:
    """Bytes of an object's arrays, and its other attributes counted by their length."""
    total = 0
    for value in vars(owner).values():
        if isinstance(value, np.ndarray):
            total += value.nbytes
        elif isinstance(value, (list, dict)):
            total += len(value)
    return total
