"""From low-resolution logits to labels: one pass without a plane per class beside planes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from tagclip.modeling.inference.fusion import BestClass, ScoreFusion
from tagclip.projects.benchmark.findings import Findings
from tagclip.projects.benchmark.measure import alternate
from tagclip.projects.benchmark.workload import Workload

__all__ = ["fusion"]

# Regions of one class each in `like_trained`.
_REGIONS = 14


@torch.no_grad()
def fusion(workload: Workload, runs: int) -> Findings:
    """Time of labels, scores and trusty map, from three kinds of logits.

    Of the model, whose random weights tell few classes apart; made like those of a trained model;
    and noise, where every class wins somewhere and nothing can be left out.
    """
    model, scale, found = workload.model.eval(), workload.scale, Findings("fusion")
    item = workload.item()
    kinds = {
        "the model's logits": model.encode(item, model.vocabulary),
        "logits like a trained model's": like_trained(workload),
        "noise": workload.fusion(scale.classes, tuple(item["image"].shape[-2:])),
    }
    for name, logits in kinds.items():
        functions = {
            "one pass": partial(logits.labels, scale.photo),
            "planes": partial(_planes, logits, scale.photo),
        }
        times = alternate(functions, 2 * runs, workload.device)
        for way, timing in times.items():
            found.add(f"{name}, {way}", timing)
        ratio = found.add(f"{name}, ratio", times["one pass"].over(times["planes"]), "x")
        changed = logits.labels(scale.photo)["sem_seg_labels"] != _planes(logits, scale.photo)[0]
        found.add(f"{name}, labels that differ", float(changed.sum()), "count")
        if name != "noise":
            found.add_bar(f"fusion and arg-max, {name}, over planes", ratio, "x", 0.40, 0.25, "-")
    return found


def like_trained(workload: Workload) -> ScoreFusion:
    """Logits of regions: one class stands out in each, the others lie low and vary slowly."""
    scale, generator = workload.scale, torch.Generator().manual_seed(0)
    height, width = workload.item()["image"].shape[-2:]
    noise = workload.fusion(scale.classes, (height, width))
    view, patch = noise.views[0], workload.model.backbone.patch_size
    rows, columns = -(-height // patch), -(-width // patch)
    waves = torch.randn(1, scale.classes, 9, 12, generator=generator)
    logits = F.interpolate(waves, (rows, columns), mode="bicubic")[0] - 5
    chosen = torch.randperm(scale.classes, generator=generator)[:_REGIONS]
    regions = _regions(len(chosen), rows, columns, generator)
    logits[chosen] += 7 * regions
    crop = view.class_logits.shape[-2:]
    windows = [
        _cut(logits, rows.start // patch, columns.start // patch, crop)
        for rows, columns in view.grid
    ]
    # No window repeats another exactly, and pixels of the trusty map are mostly sure.
    class_logits = torch.stack(windows).to(workload.device) + 0.3 * view.class_logits
    trusty_logits = 0.5 * view.trusty_logits + 2
    view = replace(view, class_logits=class_logits, trusty_logits=trusty_logits)
    return replace(noise, views=(view,))


def _regions(count: int, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """(count, rows, columns): the patches that are nearest to each of some random points."""
    points = torch.rand(count, 2, generator=generator) * torch.tensor([rows, columns])
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    nearest = torch.cdist(places, points).argmin(dim=1).view(rows, columns)
    regions = F.one_hot(nearest, count).permute(2, 0, 1).float()
    return F.avg_pool2d(regions[None], 3, 1, 1)[0]


def _cut(logits: Tensor, top: int, left: int, size: torch.Size) -> Tensor:
    top, left = (
        min(at, n - s) for at, n, s in zip((top, left), logits.shape[1:], size, strict=True)
    )
    return logits[:, top : top + size[0], left : left + size[1]]


def _planes(logits: ScoreFusion, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Labels and trusty map by planes of whole classes, some at a time."""
    best = BestClass(size, logits.seen_mask.device)
    for start, scores in logits.chunks(size):
        best.add(start, scores)
    return best.labels(torch.int16), logits.trusty(size)
