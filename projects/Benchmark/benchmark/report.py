"""Tables of a benchmark, for the terminal and for PERFORMANCE.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

__all__ = ["format_markdown", "format_text"]

NOT_MEASURED = "not measured"
_HEADINGS = {
    "ViT": "The ViT alone",
    "inference": "One image, from the file to labels",
    "training": "One training step, without the optimizer",
    "text": "Class vectors",
    "evaluator": "Evaluator, per image",
    "large": "Large image, many classes",
    "labels": "Colour masks to label files",
    "kernel": "The fused kernel of GPUs, compiled ahead",
    "fusion": "From logits to labels",
    "relative": "The relative trusty map",
    "precision": "Half precision",
    "int8": "Exported files, from a resized image to labels",
    "drawing": "Drawing: a prediction to a page in a PNG",
    "startup": "From the start of a process",
    "bulk": "Very many small images: tagclip bulk, MiniBench's model",
    "loading": "Training samples from files, per image",
    "throughput": "Throughput",
}
# What a GPU run of the tool fills.
_GPU_ROWS = [
    (f"{dtype}, {step}batch {size}", unit)
    for step, sizes in (("", (1, 8)), ("training step, ", (2, 4, 8)))
    for dtype in ("float32", "bfloat16")
    for size in sizes
    for unit in ("ms", "images/s", "MiB")
]
_CURVES = {
    "classes": "Time and memory of head, fusion and argmax against the number of classes",
    "side": "Time and memory of fusion and argmax against the side of the image",
    "prompts": "Time and memory of the ViT against the number of prompts",
}


def format_text(result: Mapping[str, Any]) -> str:
    """Tables for a terminal.

    Args:
        result: as `tagclip benchmark --json` prints it.
    """
    sections = [_machine(result["machine"]), tabulate(_bars(result["bars"]), _BAR_HEAD, **_PLAIN)]
    for part, rows in _parts(result["rows"]).items():
        table = tabulate(rows, ("what", "median", "unit", "range"), **_PLAIN)
        sections.append(f"{_HEADINGS[part]}\n{table}")
    return "\n\n".join(section for section in sections if section)


_BAR_HEAD = ("what", "released", "bar", "goal", "measured", "")
_PLAIN = {"disable_numparse": True}


def format_markdown(
    cpu: Mapping[str, Any] | None, gpu: Mapping[str, Any] | None, pictures: Mapping[str, str]
) -> str:
    """The text of PERFORMANCE.md.

    Args:
        cpu, gpu: results on either device; None: there is none.
        pictures: axis -> path of its picture, relative to the text.
    """
    sections = [_INTRODUCTION]
    for name, result in (("CPU", cpu), ("GPU", gpu)):
        machine = NOT_MEASURED if result is None else _machine(result["machine"])
        sections.append(f"{name}: {machine}")
    if cpu is not None:
        sections.append("## Bars\n\n" + _github(_bars(cpu["bars"]), _BAR_HEAD))
    found = [
        {(row["part"], row["name"], row["unit"]): row for row in result["rows"]} if result else {}
        for result in (cpu, gpu)
    ]
    for part, heading in _HEADINGS.items():
        keys = [key for own in found for key in own if key[0] == part]
        if part == "throughput":
            keys += [(part, *row) for row in _GPU_ROWS]
        if not keys:
            continue
        rows = [
            (key[1], key[2], *(_cell(own.get(key)) for own in found)) for key in dict.fromkeys(keys)
        ]
        sections.append(f"## {heading}\n\n" + _github(rows, ("what", "unit", "CPU", "GPU")))
    sections += [f"![{_CURVES[axis]}]({path})" for axis, path in pictures.items()]
    return "\n\n".join(sections) + "\n"


_INTRODUCTION = """# Performance

Written by `tagclip benchmark --curves --write PERFORMANCE.md --images docs/images`; see there for
what is measured. ViT-B/16 with random weights, 100 prompts, the sizes of COCO-Stuff. Times are
medians of runs that alternate in one process, with least and greatest in brackets; ratios are
medians of the ratios of neighbouring runs. Memory is the growth of the peak beyond what the process
held before the call, the model for one, each in a process of its own (on a GPU, what torch
allocates). "Released" is the sequence of operations of the released code around the same networks:
planes of all classes, windows padded to the whole image, dense one-hot targets. Absolute times do
not carry over to another machine; the ratios to the bare ViT do."""


def _machine(machine: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in machine.items()) + "."


def _bars(bars: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            bar["name"],
            bar["released"],
            f"{bar['limit']:g} {bar['unit']}",
            "-" if bar["goal"] is None else f"{bar['goal']:g}",
            _number(bar["value"]),
            "met" if bar["met"] else "MISSED",
        )
        for bar in bars
    ]


def _parts(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, ...]]]:
    parts: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        cells = (row["name"], _number(row["value"]), row["unit"], _spread(row))
        parts.setdefault(row["part"], []).append(cells)
    return parts


def _spread(row: Mapping[str, Any]) -> str:
    return f"{_number(row['low'])}-{_number(row['high'])}" if row["runs"] > 1 else ""


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return NOT_MEASURED
    return _number(row["value"]) + (f" ({_spread(row)})" if row["runs"] > 1 else "")


def _number(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return NOT_MEASURED
    if value == round(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _github(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    return tabulate(rows, head, tablefmt="github", **_PLAIN)
