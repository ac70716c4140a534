"""Peak memory, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tagclip.projects.benchmark.measure import memory_growth
from tagclip.projects.benchmark.naive import naive_labels, naive_losses
from tagclip.projects.benchmark.subject import QUICK, Scale, Subject

__all__ = ["MEASURED", "peak_memory", "vit_step"]

# Name -> function of a subject that prepares everything and returns the call to measure.
MEASURED: dict[str, Callable[[Subject], Callable[[], Any]]] = {}


def _measured(function: Callable[[Subject], Callable[[], Any]]) -> Callable:
    MEASURED[function.__name__] = function
    return function


def peak_memory(scale: Scale, device: str, name: str, *options: Any) -> float:
    """MiB that a call of `MEASURED` takes beyond what was held before, the model for one.

    Args:
        scale: sizes; `QUICK` is measured in this process, whose free memory hides the growth.
        device: ``cpu`` or ``cuda``.
        name: key of `MEASURED`.
        options: config keys and values.
    """
    arguments = scale, device, name, torch.get_num_threads(), *options
    if scale == QUICK:
        return _measure(*arguments)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_measure, *arguments).result()


def _measure(scale: Scale, device: str, name: str, threads: int, *options: Any) -> float:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(scale, device, Path(folder), *options)
        subject.model  # noqa: B018  built before the meter starts
        return memory_growth(MEASURED[name](subject), device)


@_measured
def vit(subject: Subject) -> Callable[[], Any]:
    """Forward pass of the backbone on one window."""
    return torch.no_grad()(partial(subject.model.eval().backbone, subject.window()))


@_measured
def labels(subject: Subject) -> Callable[[], Any]:
    """The whole model on a photo."""
    return partial(subject.model.eval(), [subject.item()])


@_measured
def naive(subject: Subject) -> Callable[[], Any]:
    """The released sequence on the same photo."""
    item, size = subject.item(), subject.scale.photo
    return partial(naive_labels, subject.model.eval(), item["image"], size)


@_measured
def large(subject: Subject) -> Callable[[], Any]:
    """The whole model on a large photo with many classes."""
    return partial(subject.model.eval(), [subject.large_item()])


@_measured
def step(subject: Subject) -> Callable[[], Any]:
    """Forward, losses and backward of one image."""
    return partial(subject.training_step, subject.training_batch())


@_measured
def bare_step(subject: Subject) -> Callable[[], Any]:
    """Forward and backward of the backbone alone."""
    return vit_step(subject)


@_measured
def naive_step(subject: Subject) -> Callable[[], Any]:
    """The same networks with the released losses."""
    model, batch = subject.model, subject.training_batch()

    def run() -> None:
        images, targets = subject.targets(batch)
        features = model.train().backbone(images)
        head = model.sem_seg_head
        logits = head.layers(features, model.text_bank(model.train_vocabulary))
        sum(naive_losses(head.loss, *logits, targets).values()).backward()
        model.zero_grad()

    return run


def vit_step(subject: Subject) -> Callable[[], None]:
    """Forward and backward of the backbone, with random gradients of its outputs."""
    backbone = subject.model.train().backbone
    images, _ = subject.targets(subject.training_batch())
    with torch.no_grad():
        weights = {name: torch.randn_like(x) for name, x in backbone(images).items()}

    def run() -> None:
        features = backbone(images)
        sum((features[name] * weight).sum() for name, weight in weights.items()).backward()
        backbone.zero_grad()

    return run
