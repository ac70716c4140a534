"""From a resized image to its labels: the exported int8 file beside the model in torch."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import numpy as np
import torch

from tagclip.export.onnx import WindowModel, to_onnx
from tagclip.export.quantization import quantize
from tagclip.export.recipe import window_recipe
from tagclip.export.runtime.session import RUNTIMES, open_model
from tagclip.export.runtime.windows import label_image, window_places
from tagclip.projects.benchmark.findings import Findings
from tagclip.projects.benchmark.measure import alternate
from tagclip.projects.benchmark.workload import Workload

__all__ = ["int8"]


def int8(workload: Workload, runs: int) -> Findings:
    """Windows, networks, mean of windows, resize and arg-max, in each runtime that is installed.

    On a CPU; on a GPU nothing is measured.
    """
    model, found = workload.model.eval(), Findings("int8")
    if workload.device != "cpu":
        return found
    size, side = tuple(workload.item()["image"].shape[-2:]), workload.scale.crop
    item, settings = workload.item(size), model.inference_settings
    pixels, threads = item["image"].numpy(), torch.get_num_threads()
    recipe = {"windows": window_recipe(settings, (side, side)), "background_threshold": None}
    windows = [
        {"images": np.ascontiguousarray(pixels[None, :, rows, columns])}
        for rows, columns in window_places(*size, recipe["windows"])
    ]
    content = to_onnx(WindowModel(model, workload.vocabulary(workload.scale.classes), (side, side)))
    files = {"float32": content, "int8": quantize(content, windows)}
    functions = {"torch float32": partial(model, [item])}
    for runtime in filter(find_spec, RUNTIMES):
        for kind, file in files.items():
            run = open_model(file, runtime, threads=threads)
            functions[f"{runtime} {kind}"] = partial(
                label_image, pixels, size, recipe, lambda window, run=run: run({"images": window})
            )
    times = alternate(functions, runs)
    ratios = []
    for name, timing in times.items():
        found.add(name, timing)
        if not name.startswith("torch"):
            ratio = timing.over(times["torch float32"])
            ratios += [found.add(f"{name} over torch", ratio, "x")] * name.endswith("int8")
    what = f"{size[0]}x{size[1]} image, {workload.scale.classes} classes, int8 over torch float32"
    found.add_bar(what, min(ratios), "x", 0.45, 0.30, "1.00")
    return found
