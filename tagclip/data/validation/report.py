"""What the validation of a dataset writes: text, json, histogram of classes, contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tagclip.data.image_io import read_image
from tagclip.data.label_io import read_label
from tagclip.data.validation.findings import Finding
from tagclip.data.validation.scan import DatasetScan, Sample
from tagclip.utils.look_up import look_up
from tagclip.visualization.class_charts import SEEN_COLOR, UNSEEN_COLOR, class_chart, save_chart
from tagclip.visualization.panels import draw_legend, draw_panels, fit, save_png, stack_pictures
from tagclip.visualization.segments import UNSEEN_MARK, draw_segments, marked_names

__all__ = ["draw_contact_sheet", "draw_histogram", "format_report", "report_content"]

_TILE = 320
_COLUMNS = 4
# Longer names of images are cut on the left.
_TITLE = 30
# The histogram shows so many values without class, those with most pixels.
_UNKNOWN_ROWS = 20
_IGNORED_COLOR, _UNKNOWN_COLOR = "0.6", "black"


def report_content(scan: DatasetScan, findings: Sequence[Finding]) -> dict[str, Any]:
    """Everything that was counted and found, ready for json.

    Returns:
        "shares" are fractions of all pixels of the label files; "classes" are in the order of
        the vocabulary, with the number of their pixels and of the label files they are in.
    """
    vocabulary = scan.vocabulary
    seen = vocabulary.seen or (None,) * len(vocabulary)
    return {
        "dataset": scan.name,
        "clean": not any(finding.is_problem for finding in findings),
        "vocabulary": vocabulary.name,
        "vocabulary_fingerprint": vocabulary.fingerprint,
        "split": vocabulary.split,
        "images": sum(scan.modes["image"].values()),
        "labels": scan.labels,
        "image_modes": dict(sorted(scan.modes["image"].items())),
        "label_modes": dict(sorted(scan.modes["label"].items())),
        "image_sizes": _size_range(scan, "image"),
        "label_sizes": _size_range(scan, "label"),
        "exif_orientations": {str(k): n for k, n in sorted(scan.orientations.items())},
        "shares": pixel_shares(scan),
        "classes": [
            {"id": entry.id, "name": entry.name, "seen": flag, **_counts(scan, entry.ids)}
            for entry, flag in zip(vocabulary.classes, seen, strict=True)
        ],
        "ignored": {"value": vocabulary.ignore_label, **_counts(scan, vocabulary.ignored)},
        "unknown": [{"value": value, **_counts(scan, (value,))} for value in scan.unknown],
        "problems": [asdict(finding) for finding in findings],
    }


def pixel_shares(scan: DatasetScan) -> dict[str, float]:
    """Fractions of all pixels: "seen" and "unseen", or "labelled" without a partition; "ignored",
    "unknown" (outside the vocabulary). Empty without pixels."""
    total = sum(scan.pixels.values())
    if not total:
        return {}
    vocabulary = scan.vocabulary
    counts = {"labelled": 0} if vocabulary.seen is None else {"seen": 0, "unseen": 0}
    flags = vocabulary.seen or (None,) * len(vocabulary)
    for entry, flag in zip(vocabulary.classes, flags, strict=True):
        part = {None: "labelled", True: "seen", False: "unseen"}[flag]
        counts[part] += scan.total(entry.ids)
    counts["ignored"] = scan.total(vocabulary.ignored)
    counts["unknown"] = scan.total(scan.unknown)
    return {part: count / total for part, count in counts.items()}


def _counts(scan: DatasetScan, values: tuple[int, ...]) -> dict[str, int]:
    return {"pixels": scan.total(values), "images": scan.files(values)}


def _size_range(scan: DatasetScan, what: str) -> dict[str, Any]:
    """Number of sizes, the most frequent, and the range of width and height."""
    sizes = scan.sizes[what]
    if not sizes:
        return {"number": 0}
    widths, heights = zip(*sizes, strict=True)
    return {
        "number": len(sizes),
        "most_frequent": list(min(sizes, key=lambda size: (-sizes[size], size))),
        "width": [min(widths), max(widths)],
        "height": [min(heights), max(heights)],
    }


def format_report(content: dict[str, Any]) -> str:
    """The report as text: facts, problems and notes with counts, examples and advice."""
    split = f", split {content['split']}" if content["split"] else ""
    lines = [
        f"{content['dataset']}: {content['images']} images, {content['labels']} label files read; "
        f"vocabulary {content['vocabulary']}{split}"
    ]
    for what in ("image", "label"):
        sizes = content[f"{what}_sizes"]
        if sizes["number"]:
            modes = ", ".join(f"{mode} {n}" for mode, n in content[f"{what}_modes"].items())
            lines.append(f"  {what}s: {modes}; {_format_sizes(sizes)}")
    shares = ", ".join(f"{part} {share:.1%}" for part, share in content["shares"].items())
    lines.append(f"  pixels: {shares or 'none'}")
    lines += map(_format_finding, content["problems"])
    found = sum(finding["is_problem"] for finding in content["problems"])
    lines.append(f"{content['dataset']}: {found or 'no'} problem{'s' * (found != 1)} found")
    return "\n".join(lines)


def _format_sizes(sizes: dict[str, Any]) -> str:
    if sizes["number"] == 1:
        return "all {}x{} pixels (width x height)".format(*sizes["most_frequent"])
    return "{} sizes, width {} to {}, height {} to {} pixels".format(
        sizes["number"], *sizes["width"], *sizes["height"]
    )


def _format_finding(finding: dict[str, Any]) -> str:
    kind = "PROBLEM" if finding["is_problem"] else "note"
    files = f" ({finding['count']} file{'s' * (finding['count'] != 1)})" if finding["count"] else ""
    lines = [f"{kind}{files}: {finding['title']}"]
    lines += [f"    {example}" for example in finding["examples"]]
    hidden = finding["count"] - len(finding["examples"])
    if finding["examples"] and hidden > 0:
        lines.append(f"    ... and {hidden} more")
    if finding["advice"]:
        lines.append(f"  -> {finding['advice']}")
    return "\n".join(lines)


def draw_histogram(scan: DatasetScan, path: str | Path) -> Path:
    """Draw pixels and label files of every class, in the order of the vocabulary.

    Ignored pixels and values outside the vocabulary follow below the classes.
    """
    vocabulary = scan.vocabulary
    seen = vocabulary.seen or (True,) * len(vocabulary)
    rows = [
        (f"{name} ({_listed(entry.ids)})", entry.ids, SEEN_COLOR if flag else UNSEEN_COLOR)
        for name, entry, flag in zip(
            marked_names(vocabulary), vocabulary.classes, seen, strict=True
        )
    ]
    rows.append((f"ignored ({_listed(vocabulary.ignored)})", vocabulary.ignored, _IGNORED_COLOR))
    unknown = sorted(scan.unknown, key=lambda value: (-scan.pixels[value], value))[:_UNKNOWN_ROWS]
    rows += [(f"no class ({value})", (value,), _UNKNOWN_COLOR) for value in sorted(unknown)]
    names, values, colors = zip(*rows, strict=True)
    title = f"{scan.name}: {scan.labels} label files"
    if not all(seen):
        title += f" ({UNSEEN_MARK} unseen in split {vocabulary.split})"
    hidden = len(scan.unknown) - len(unknown)
    title += f"; {hidden} rarer values without class" * (hidden > 0)
    unseen = [color == UNSEEN_COLOR for color in colors]
    figure, columns = class_chart(
        names, unseen, ("pixels (log scale)", "label files (log scale)"), title
    )
    for panel, count in enumerate((scan.total, scan.files)):
        known = list(filter(None, map(count, values))) or [1]
        # Room for small bars and for the numbers.
        low, high = max(0.7, min(known) / 10), max(*known, 10) ** 1.3
        for column in columns:
            axis = column.axes[panel]
            lengths = [count(values[k]) for k in column.classes]
            axis.set_xscale("log")
            axis.set_xlim(low, high)
            axis.minorticks_off()
            axis.barh(range(len(lengths)), lengths, color=[colors[k] for k in column.classes])
            for y, length in enumerate(lengths):
                text = _short(length) if length else "none"
                axis.text(max(length, low) * 1.15, y, text, fontsize=7, va="center", color="0.25")
    return save_chart(figure, path)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _short(count: int) -> str:
    for factor, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return str(count)


def draw_contact_sheet(
    scan: DatasetScan, samples: Sequence[Sample], path: str | Path, number: int = 12
) -> Path | None:
    """Draw labels over images that are evenly spread over the dataset.

    Args:
        scan: its vocabulary gives names and colours.
        samples: whose files can be read and fit together.
        path: of the PNG.
        number: how many images, at most.

    Returns:
        ``path``, or None without samples.
    """
    if not samples:
        return None
    places = np.linspace(0, len(samples) - 1, min(number, len(samples))).round().astype(int)
    lut = scan.vocabulary.label_lut()
    tiles, shown = [], set()
    for sample in (samples[place] for place in places):
        raw = read_label(sample.label, scan.vocabulary)
        known = (raw >= 0) & (raw < len(lut))
        labels = np.where(known, look_up(lut, np.where(known, raw, 0)), -1)
        shown |= set(np.unique(labels).tolist())
        title = sample.key[-_TITLE:]
        unknown = sorted(set(np.unique(raw).tolist()) & set(scan.unknown))
        if unknown:
            more = ", ..." * (len(unknown) > 4)
            title += f" (no class: {', '.join(map(str, unknown[:4]))}{more})"
        tiles.append(draw_panels([[_overlay(sample, labels, scan)]], [title]))
    rows = [tiles[i : i + _COLUMNS] for i in range(0, len(tiles), _COLUMNS)]
    rows[-1] += [None] * (len(rows[0]) - len(rows[-1]))
    title = f"{scan.name}: labels over images, evenly spread over the dataset"
    sheet = draw_panels(rows, [title] + [""] * (len(rows[0]) - 1))
    classes = sorted(shown & set(range(len(scan.vocabulary))))
    legend = draw_legend(scan.vocabulary, sheet.shape[1], classes, -1 in shown)
    return save_png(path, stack_pictures([sheet, legend]))


def _overlay(sample: Sample, labels: np.ndarray, scan: DatasetScan) -> np.ndarray:
    image = read_image(sample.image)
    return draw_segments(fit(image, _TILE), fit(labels, _TILE), scan.vocabulary, alpha=0.5)
