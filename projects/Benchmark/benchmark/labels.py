"""Colour masks to label files: `tagclip labels convert` beside a plain loop over the colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tagclip.data.label_conversion import Conversion, MaskFile
from tagclip.projects.benchmark.findings import Findings
from tagclip.projects.benchmark.measure import alternate
from tagclip.projects.benchmark.workload import Workload

__all__ = ["labels"]


def labels(workload: Workload, runs: int) -> Findings:
    """From a mask of 30 colours to an index PNG, on one core, both from file to file."""
    height, width = workload.scale.mask
    generator = np.random.default_rng(0)
    colors = generator.choice(1 << 24, 30, replace=False)
    palette = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1).astype(np.uint8)
    cells = generator.integers(0, 30, (height // 16, width // 16)).astype(np.uint8)
    ids = cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)
    source = Path(workload.image).with_name("mask.png")
    Image.fromarray(palette[ids]).save(source)
    pairs = tuple((tuple(color), value) for value, color in enumerate(palette.tolist()))
    conversion = Conversion(pairs, {}, "colors", None, 255, False, {v: c for c, v in pairs}, True)
    functions = {
        "convert": partial(_convert, conversion, source),
        "loop": partial(_loop, palette, source),
    }
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        times, found = alternate(functions, runs), Findings("labels")
    finally:
        cv2.setNumThreads(threads)
    what = f"{width}x{height} mask, 30 colours"
    found.add(f"{what}: tagclip labels convert", times["convert"])
    found.add(f"{what}: plain loop over the colours", times["loop"])
    ratio = found.add("loop over conversion", times["loop"].over(times["convert"]), "x")
    found.add_bar(f"{what}: conversion over a plain loop", 1 / ratio, "x", limit=1 / 3)
    return found


def _convert(conversion: Conversion, source: Path) -> None:
    output = source.with_name("converted.png")
    output.unlink(missing_ok=True)
    conversion(MaskFile(source, output))


def _loop(palette: Sequence[np.ndarray], source: Path) -> None:
    pixels = np.array(Image.open(source))
    ids = np.full(pixels.shape[:2], 255, np.uint8)
    for value, color in enumerate(palette):
        ids[(pixels == color).all(axis=2)] = value
    file = io.BytesIO()
    Image.fromarray(ids).save(file, "PNG")
    source.with_name("loop.png").write_bytes(file.getvalue())
