"""The relative trusty map: what it adds to an image, and what another list of words costs."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from tagclip.modeling.heads.class_gaussians import PatchStatistics
from tagclip.modeling.heads.none_of_these import LEAST_PATCHES, KeptPatches
from tagclip.modeling.heads.relative_trusty import PatchVectors, RelativeTrusty
from tagclip.projects.benchmark.findings import Findings
from tagclip.projects.benchmark.measure import Timing, alternate, seconds
from tagclip.projects.benchmark.workload import Scale, Workload
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import temporary_folder

__all__ = ["relative"]

_PLAIN = "without trusty map"
_MAP = ("MODEL.TAGCLIP.TRUSTY.KIND", "relative")
_MODELS = {
    _PLAIN: ("MODEL.TAGCLIP.TRUSTY.ENABLED", False),
    "with the map": _MAP,
    "with map and BACKGROUND auto": (*_MAP, "MODEL.TAGCLIP.TEST.BACKGROUND", "auto"),
}


def relative(workload: Workload, runs: int) -> Findings:
    """One image, and a first and another list of words."""
    found, item = Findings("relative"), workload.item()
    models = {name: _model(workload, options) for name, options in _MODELS.items()}
    functions = {name: partial(model, [item]) for name, model in models.items()}
    times = alternate(functions, runs, workload.device)
    for name, timing in times.items():
        found.add(f"the whole model, {name}", timing)
    plain = times.pop(_PLAIN)
    for name, timing in times.items():
        found.add(f"{name}, over that {_PLAIN}", timing.over(plain), "x")
    for name in times:
        _add_lists(found, name, models[name], workload, runs)
    return found


def _model(workload: Workload, options: tuple[Any, ...]) -> nn.Module:
    with temporary_folder() as folder:
        model = Workload(workload.scale, workload.device, folder, *options).model.eval()
    if model.relative_trusty is not None:
        _fit(model.relative_trusty, workload.scale)
    return model


def _fit(trusty: RelativeTrusty, scale: Scale) -> None:
    """Random patches of each class, whole images of them, and patches of no class."""
    generator = torch.Generator().manual_seed(4)
    images, dim, *grid = trusty.sample_dense.shape
    inputs, kept, channels = trusty.none_of_these.vectors.shape
    maps = torch.randn(2, images, dim, *grid, generator=generator)
    whole = torch.randn(images, dim, generator=generator)
    vectors = torch.randn(1, channels, scale.seen, LEAST_PATCHES, generator=generator)
    labels = torch.arange(scale.seen)[None, :, None].expand(1, -1, LEAST_PATCHES)
    trusty.fit(
        PatchStatistics.of(vectors, labels, scale.seen),
        PatchStatistics.of(vectors + 1, torch.zeros_like(labels), 1),
        PatchVectors(maps[0], maps[1], whole),
        torch.ones(images, *grid, dtype=torch.bool),
        KeptPatches(
            torch.randn(inputs, kept, channels, generator=generator),
            torch.ones(inputs, kept),
            torch.arange(inputs),
        ),
    )


def _add_lists(found: Findings, name: str, model: nn.Module, workload: Workload, runs: int) -> None:
    """Lists of a seen and an unseen word each, beside all classes of the training."""
    last = workload.scale.classes - 1
    lists = [
        Vocabulary.from_names([f"class {k}", f"class {last - k}"], [True, False]) for k in range(2)
    ]
    first, others = [], []
    for _ in range(runs):
        # Whatever was prepared is out of date.
        model.relative_trusty.fits += 1
        for times, asked in zip((first, others), lists, strict=True):
            times.append(seconds(partial(model.relative_map, asked), workload.device))
    what = f"{name}, {workload.scale.seen} classes of the training"
    found.add(f"{what}: the first list of words", Timing(tuple(first)))
    found.add(f"{what}: another list", Timing(tuple(others)))
