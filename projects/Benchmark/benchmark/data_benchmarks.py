"""Benchmarks that need files: text cache and evaluator."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog

from tagclip.data.label_io import read_label
from tagclip.data.protocol import query_vocabulary
from tagclip.evaluation.evaluator import ZeroShotSemSegEvaluator
from tagclip.modeling.clip.text_bank import TextBank
from tagclip.projects.benchmark.findings import Findings
from tagclip.projects.benchmark.measure import alternate, seconds
from tagclip.projects.benchmark.released import released_confusion
from tagclip.projects.benchmark.workload import Workload, rectangles

__all__ = ["evaluator", "text"]

# Prompts of the released way, one text forward of full length each, that are timed.
_SAMPLE = 8


def text(workload: Workload, runs: int) -> Findings:
    """Class vectors: encoded, read from the cache, and one uncut prompt at a time."""
    vocabulary = workload.vocabulary(workload.scale.classes)
    with tempfile.TemporaryDirectory() as folder:
        cfg = workload.cfg.clone()
        cfg.merge_from_list(["MODEL.CLIP.TEXT_CACHE", folder])
        first, second = (TextBank(cfg).to(workload.device) for _ in range(2))
        # Built before the clock starts.
        tower = first.source.text_tower().to(workload.device)
        encoded = seconds(partial(first, vocabulary), workload.device)
        cached = seconds(partial(second, vocabulary), workload.device)
        if not torch.equal(first(vocabulary), second(vocabulary)):
            raise RuntimeError("the text cache gave back other vectors")
    prompts = len(first.templates) * len(vocabulary.prompts)
    ids = torch.zeros(1, first.source.context_length, dtype=torch.long, device=workload.device)
    one = torch.no_grad()(partial(tower.encode_text, ids))
    uncut = alternate({"one": one}, _SAMPLE, workload.device)["one"].median * prompts
    name, found = f"{prompts} prompts", Findings("text")
    found.add(f"{name}, first time", encoded, "s")
    found.add(f"{name}, second time, from the cache", cached)
    found.add(f"{name}, uncut, one by one (from {_SAMPLE})", uncut, "s")
    found.add("text forwards, first time", first.num_text_forwards, "count")
    again = found.add("text forwards, second time", second.num_text_forwards, "count")
    what = f"text forwards of {name}, second time"
    found.add_bar(what, again, "count", 0, released="every run")
    return found


def evaluator(workload: Workload, runs: int) -> Findings:
    """One image in the evaluator; what it holds after one image and after many."""
    vocabulary = query_vocabulary(workload.cfg, workload.dataset)
    height, width = workload.scale.photo
    # Rectangles of 12 classes, as many as an image may well show.
    truth = torch.from_numpy(rectangles(len(vocabulary), (height, width))).long()
    scores = torch.full((len(vocabulary), height, width), 0.1)
    scores.scatter_(0, truth.clamp(max=len(vocabulary) - 1)[None], 0.9)
    output = {"sem_seg_labels": scores.argmax(dim=0).to(torch.int16), "trusty": scores[0].half()}
    sample = DatasetCatalog.get(workload.dataset)[0]
    measured = ZeroShotSemSegEvaluator(workload.dataset, vocabulary=vocabulary, distributed=False)
    process = partial(measured.process, [sample], [output])
    process()
    held = _held_bytes(measured)
    times = alternate(
        {
            "lean": process,
            "released": lambda: released_confusion(scores, read_label(sample["sem_seg_file_name"])),
        },
        10 * runs,
    )
    grown = _held_bytes(measured) - held
    images = 10 * runs + 2
    name, found = f"{len(vocabulary)} classes, {width}x{height}", Findings("evaluator")
    lean = found.add(f"{name}, labels", times["lean"])
    found.add(f"{name}, released: scores on the CPU, RLE", times["released"])
    found.add(f"bytes held more after {images} images", grown, "count")
    found.add_bar(f"evaluator, {name}", lean, "ms", 5, released="RLE and scores")
    found.add_bar("evaluator, growth with images", grown, "count", 0, released="14-20 kB each")
    return found


def _held_bytes(owner: Any) -> int:
    """Bytes of an object's arrays, and its other attributes counted by their length."""
    total = 0
    for value in vars(owner).values():
        if isinstance(value, np.ndarray):
            total += value.nbytes
        elif isinstance(value, (list, dict)):
            total += len(value)
    return total
