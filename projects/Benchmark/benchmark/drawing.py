"""A prediction to a PNG: the demo's page, and the same by a figure of matplotlib per part."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.utils.visualizer import VisImage, Visualizer
from PIL import Image

from tagclip.demo.results import save_output
from tagclip.projects.benchmark.findings import Findings
from tagclip.projects.benchmark.measure import Timing
from tagclip.projects.benchmark.workload import Workload
from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.panels import draw_legend, draw_trusty_bar, stack_pictures
from tagclip.visualization.prediction_page import draw_prediction
from tagclip.visualization.segments import colorize_labels, colorize_trusty, marked_names

__all__ = ["drawing"]

_SIZE = 512
_CLASSES = 12


def drawing(workload: Workload, runs: int) -> Findings:
    """CPU time from a prediction of 12 classes to its file, without that of the model."""
    # A scale's 640x480 becomes 480x360.
    height, width = (side * 3 // 4 for side in workload.scale.photo)
    rng = np.random.default_rng(0)
    image = _smooth(rng.integers(0, 256, (height // 12, width // 12, 3), np.uint8), (width, height))
    maps = {
        key: torch.from_numpy(_smooth(rng.random((6, 8), np.float32), (width, height)))
        for key in ("sem_seg_scores", "trusty")
    }
    fields = [_smooth(rng.random((5, 6), np.float32), (width, height)) for _ in range(_CLASSES)]
    labels = np.stack(fields).argmax(axis=0).astype(np.int16)
    prediction = {"sem_seg_labels": torch.from_numpy(labels), **maps}
    vocabulary = Vocabulary.from_names([f"class {k}" for k in range(_CLASSES)])
    folder = Path(workload.image).parent
    functions = {
        "raster": partial(_draw, image, prediction, vocabulary, folder / "raster.png"),
        "figures": partial(_draw_figures, image, prediction, vocabulary, folder / "figures.png"),
    }
    spent: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            spent[name].append(time.process_time() - start)
    # The first run of each loads fonts.
    times = {name: Timing(tuple(found[1:])) for name, found in spent.items()}
    what, found = f"{width}x{height} photo", Findings("drawing")
    found.add(f"{what}, CPU time: page and PNG", times["raster"])
    found.add(f"{what}, CPU time: by figures of matplotlib", times["figures"])
    ratio = found.add("page and PNG over figures", times["raster"].over(times["figures"]), "x")
    found.add_bar(f"{what}: drawing over figures of matplotlib", ratio, "x", 0.25, 0.15)
    return found


def _smooth(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)


def _draw(
    image: np.ndarray, prediction: Mapping[str, Any], vocabulary: Vocabulary, path: Path
) -> None:
    save_output(path, draw_prediction(image, prediction, vocabulary, _SIZE), fast=True)


def _draw_figures(
    image: np.ndarray, prediction: Mapping[str, Any], vocabulary: Vocabulary, path: Path
) -> None:
    """Draw as before there was `raster_text`: a larger page, a figure for each part with text."""
    factor = -(-_SIZE // max(image.shape))
    picture, labels, scores, trusty = (
        values.repeat(factor, axis=0).repeat(factor, axis=1)
        for values in (image, *(value.numpy() for value in prediction.values()))
    )
    mixed = picture * 0.3 + colorize_labels(labels, vocabulary) * 0.7
    edges = np.zeros(labels.shape, dtype=bool)
    edges[1:] |= labels[1:] != labels[:-1]
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    mixed[edges] = 0
    visualizer = Visualizer(np.rint(mixed).astype(np.uint8))
    for k, name in enumerate(marked_names(vocabulary)):
        inside = (labels == k).astype(np.uint8)
        cv2.connectedComponentsWithStats(inside)
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        visualizer.draw_text(name, (x, y), font_size=9, color="w")
    segments = visualizer.output.get_image()
    bar = _by_figure(draw_trusty_bar(picture.shape[1]))
    maps = [stack_pictures([colorize_trusty(m), _by_figure(bar)]) for m in (scores, trusty)]
    blank = np.full((38, picture.shape[1], 3), 255, np.uint8)
    panels = [stack_pictures([part, blank]) for part in (picture, segments)] + maps
    page = _by_figure(np.concatenate(panels, axis=1))
    legend = _by_figure(draw_legend(vocabulary, page.shape[1]))
    Image.fromarray(stack_pictures([page, legend])).save(path)


def _by_figure(page: np.ndarray) -> np.ndarray:
    output = VisImage(page)
    for i in range(4):
        output.ax.text(10 + 60 * i, 18, "some title", size=9)
    return output.get_image()
