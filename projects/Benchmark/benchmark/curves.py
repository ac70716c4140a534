"""How time and memory grow with classes, image and prompts, as numbers and as pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from tagclip.modeling.inference.fusion import ScoreFusion
from tagclip.projects.benchmark.measure import memory_growth, seconds
from tagclip.projects.benchmark.memory import peak_memory, vit
from tagclip.projects.benchmark.released import released_fusion
from tagclip.projects.benchmark.workload import Workload
from tagclip.visualization.class_charts import new_chart, save_chart, series_style, style_axes

__all__ = ["CostCurve", "CostPoint", "draw", "measure_curves"]

_PROMPTS = "MODEL.CLIP.PROMPT.NUM_TOKENS"
# Labels of a size from logits.
_Finish = Callable[[ScoreFusion, tuple[int, int]], Tensor]


@dataclass(frozen=True)
class CostPoint:
    """Cost at one value of what is varied."""

    x: int
    seconds: float
    mebibytes: float


@dataclass(frozen=True)
class CostCurve:
    """Cost along an axis.

    Attributes:
        axis: ``classes``, ``side`` or ``prompts``.
        name: what was measured.
        points: in ascending order.
    """

    axis: str
    name: str
    points: tuple[CostPoint, ...]


_TITLES = {
    "classes": ("classes", "Head, fusion and argmax of a photo"),
    "side": ("side of a square image, pixels", "Fusion and argmax, labels as large as the image"),
    "prompts": ("prompts per layer", "ViT forward of one window"),
}


def measure_curves(workload: Workload, folder: Path) -> list[CostCurve]:
    """Measure everything once, what is short several times; memory by the growth of this process.

    Args:
        workload: its model is used, except for the prompts.
        folder: empty, for the models with other prompts.
    """
    scale = workload.scale
    calls = {
        ("classes", "this library"): (partial(_classes, finish=_lean), scale.class_steps),
        ("classes", "released operations"): (
            partial(_classes, finish=_released),
            tuple(n for n in scale.class_steps if n <= scale.released_classes),
        ),
        ("side", "this library"): (partial(_side, finish=_lean), scale.side_steps),
        ("side", "released operations"): (
            partial(_side, finish=_released),
            tuple(n for n in scale.side_steps if n <= scale.released_side),
        ),
        ("prompts", "CLIPViT"): (partial(_prompts, folder=folder), scale.prompt_steps),
    }
    total = sum(len(steps) for _, steps in calls.values())
    curves = []
    with tqdm(total=total, desc="curves", unit="point") as progress:
        for (axis, name), (prepare, steps) in calls.items():
            points = []
            for x in steps:
                point = _point(x, prepare(workload, x), workload.device)
                if axis == "prompts":  # little memory, and a new model before every point
                    memory = peak_memory(scale, workload.device, vit, _PROMPTS, x)
                    point = replace(point, mebibytes=memory)
                points.append(point)
                progress.update()
            curves.append(CostCurve(axis, name, tuple(points)))
    return curves


@torch.no_grad()
def _point(x: int, call: Callable[[], Any], device: str) -> CostPoint:
    times = []
    mebibytes = memory_growth(lambda: times.append(seconds(call, device)), device)
    # The first run of something short is not typical of it.
    while sum(times) < 1 and len(times) < 4:
        times.append(seconds(call, device))
    return CostPoint(x, min(times), mebibytes)


def _classes(workload: Workload, classes: int, finish: _Finish) -> Callable[[], Any]:
    return partial(_head_and_fusion, workload, classes, finish)


def _head_and_fusion(workload: Workload, classes: int, finish: _Finish) -> Tensor:
    """Head on random features of each window, then labels of a photo."""
    model, scale = workload.model.eval(), workload.scale
    rows = scale.crop // model.backbone.patch_size
    fusion = workload.fusion(classes, workload.item()["image"].shape[-2:])
    features = {
        "clip_dense": _unit(1, model.backbone.embed_dim, rows, rows).to(model.device),
        "clip_global": _unit(1, model.backbone.embed_dim).to(model.device),
    }
    class_embed = model.text_bank(workload.vocabulary(classes))
    for _ in fusion.views[0].grid:
        model.sem_seg_head(features, class_embed)
    return finish(fusion, scale.photo)


def _side(workload: Workload, side: int, finish: _Finish) -> Callable[[], Any]:
    fusion = workload.fusion(workload.scale.classes, (side, side))
    return partial(finish, fusion, (side, side))


def _lean(fusion: ScoreFusion, size: tuple[int, int]) -> Tensor:
    return fusion.labels(size)["sem_seg_labels"]


def _released(fusion: ScoreFusion, size: tuple[int, int]) -> Tensor:
    (view,) = fusion.views
    logits = torch.cat([view.class_logits, view.trusty_logits], dim=1).split(1)
    return released_fusion(
        logits, view.grid, view.padded_size, fusion.seen_mask, torch.sigmoid, size
    )


def _prompts(workload: Workload, prompts: int, folder: Path) -> Callable[[], Any]:
    place = folder / f"prompts{prompts}"
    place.mkdir()
    other = Workload(workload.scale, workload.device, place, _PROMPTS, prompts)
    return partial(other.model.eval().backbone, other.window())


def _unit(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return F.normalize(torch.randn(shape, generator=generator), dim=1)


def draw(curves: list[CostCurve], folder: Path, note: str) -> dict[str, Path]:
    """Write ``performance_<axis>.png``: time on the left, memory on the right.

    Args:
        curves: of any axes.
        folder: where the pictures go.
        note: below each, what they were measured on.

    Returns:
        Axis -> file.
    """
    files = {}
    for axis in dict.fromkeys(curve.axis for curve in curves):
        group = [curve for curve in curves if curve.axis == axis]
        figure = new_chart((9.0, 3.6), _TITLES[axis][1])
        figure.supxlabel(note, fontsize=7, color="0.35")
        left, right = figure.subplots(1, 2)
        _plot(left, group, "seconds", "time, s")
        _plot(right, group, "mebibytes", "memory, MiB")
        left.legend(fontsize=8, frameon=False, loc="lower right")
        files[axis] = save_chart(figure, folder / f"performance_{axis}.png")
    return files


def _plot(plot: Axes, group: list[CostCurve], field: str, unit: str) -> None:
    for index, curve in enumerate(group):
        x = [point.x for point in curve.points]
        y = [getattr(point, field) for point in curve.points]
        plot.plot(x, y, label=curve.name, markersize=4, **series_style(index))
    if group[0].axis == "prompts":
        plot.set_ylim(bottom=0)
    else:
        plot.set_xscale("log")
        plot.set_yscale("log")
        plot.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        plot.yaxis.set_major_formatter("{x:g}")
    x = sorted({point.x for curve in group for point in curve.points})
    plot.set_xticks(x, [str(n) for n in x])
    plot.minorticks_off()
    plot.set_xlabel(_TITLES[group[0].axis][0], fontsize=9)
    plot.set_ylabel(unit, fontsize=9)
    style_axes(plot)
    plot.spines[["top", "right"]].set_visible(False)
