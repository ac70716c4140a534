"""Peak memory, each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch

from tagclip.projects.benchmark.measure import memory_growth
from tagclip.projects.benchmark.released import released_labels, released_losses
from tagclip.projects.benchmark.workload import QUICK, Scale, Workload
from tagclip.utils.files import temporary_folder
from tagclip.utils.parent import end_with_parent

__all__ = [
    "Prepare",
    "labels",
    "large",
    "peak_memory",
    "released",
    "released_step",
    "step",
    "vit",
    "vit_step",
]


# Prepares everything and returns the call to measure.
Prepare = Callable[[Workload], Callable[[], Any]]


def peak_memory(scale: Scale, device: str, prepare: Prepare, *options: Any) -> float:
    """MiB that a call takes beyond what was held before, the model for one.

    Args:
        scale: sizes; `QUICK` is measured in this process, whose free memory hides the growth.
        device: ``cpu`` or ``cuda``.
        prepare: one of the functions below.
        options: config keys and values.
    """
    arguments = scale, device, prepare, torch.get_num_threads(), *options
    if scale == QUICK:
        return _measure(*arguments)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, end_with_parent) as pool:
        return pool.submit(_measure, *arguments).result()


def _measure(scale: Scale, device: str, prepare: Prepare, threads: int, *options: Any) -> float:
    torch.set_num_threads(threads)
    with temporary_folder() as folder:
        workload = Workload(scale, device, folder, *options)
        workload.model  # noqa: B018  built before the meter starts
        return memory_growth(prepare(workload), device)


def vit(workload: Workload) -> Callable[[], Any]:
    """Forward pass of the backbone on one window."""
    return torch.no_grad()(partial(workload.model.eval().backbone, workload.window()))


def labels(workload: Workload) -> Callable[[], Any]:
    """The whole model on a photo."""
    return partial(workload.model.eval(), [workload.item()])


def released(workload: Workload) -> Callable[[], Any]:
    """The released sequence on the same photo."""
    item, size = workload.item(), workload.scale.photo
    return partial(released_labels, workload.model.eval(), item["image"], size)


def large(workload: Workload) -> Callable[[], Any]:
    """The whole model on a large photo with many classes."""
    return partial(workload.model.eval(), [workload.large_item()])


def step(workload: Workload) -> Callable[[], Any]:
    """Forward, losses and backward of one image."""
    return partial(workload.training_step, workload.training_batch())


def released_step(workload: Workload) -> Callable[[], Any]:
    """The same networks with the released losses."""
    model, batch = workload.model, workload.training_batch()

    def run() -> None:
        images, targets = workload.targets(batch)
        features = model.train().backbone(images)
        head = model.sem_seg_head
        logits = head.layers(features, model.text_bank(model.train_vocabulary))
        sum(released_losses(head.loss, *logits, targets).values()).backward()
        model.zero_grad()

    return run


def vit_step(workload: Workload) -> Callable[[], None]:
    """Forward and backward of the backbone, with random gradients of its outputs."""
    backbone = workload.model.train().backbone
    images, _ = workload.targets(workload.training_batch())
    with torch.no_grad():
        weights = {name: torch.randn_like(x) for name, x in backbone(images).items()}

    def run() -> None:
        features = backbone(images)
        sum((features[name] * weight).sum() for name, weight in weights.items()).backward()
        backbone.zero_grad()

    return run
