"""MiniBench's table from the results of its runs: means, paired differences, intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from tagclip.analysis.gate_analysis import DETECTOR_SECTIONS
from tagclip.projects.minibench.table_runs import RUNS, SPLITS

__all__ = [
    "ALL_ROWS",
    "CONV_ROWS",
    "FREE_ROWS",
    "PROTOCOL_RUNS",
    "REJECTED_COLUMNS",
    "ROWS",
    "STRICT_ROWS",
    "SUMMARY_ROWS",
    "TABLE_RUNS",
    "Row",
    "format_free_summary",
    "format_protocols",
    "format_summary",
    "format_table",
    "mean_and_spread",
    "paired_interval",
]

Results = dict[tuple[str, str, int], dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        label: what it says.
        run: key of `RUNS`.
        gate: name of its gate.
        key: ``given``, the bias of the config, or ``val``, the one chosen on val.
    """

    label: str
    run: str
    gate: str
    key: str


ROWS = (
    Row("**ZegCLIP** (`nnn`, no trusty map)", "ZegCLIP", "none", "val"),
    Row("TagCLIP without token (`ann`)", "TagCLIP conv", "none", "val"),
    Row("TagCLIP, token, target `seen`", "TagCLIP token seen", "product", "given"),
    Row("TagCLIP, token, target `seen`", "TagCLIP token seen", "product", "val"),
    Row("TagCLIP, token, target `novel` (released)", "TagCLIP token novel", "product", "given"),
    Row("TagCLIP, token, target `novel`", "TagCLIP token novel", "product", "val"),
    Row("TagCLIP, token, `seen`, Dice", "TagCLIP token seen Dice", "product", "val"),
    Row("TagCLIP, token, `novel`, Dice", "TagCLIP token novel Dice", "product", "val"),
    Row("**TagCLIP, convolutional head**", "TagCLIP conv", "product", "given"),
    Row("TagCLIP, convolutional head", "TagCLIP conv", "product", "val"),
    Row("TagCLIP, convolutional head, additive gate", "TagCLIP conv", "additive", "given"),
    Row("TagCLIP, convolutional head, gate only lifts", "TagCLIP conv", "lift", "given"),
    Row("ZegCLIP + convolutional head (`nnn`)", "ZegCLIP", "product", "given"),
    Row("transductive, token", "transductive token", "product", "given"),
    Row("transductive, convolutional head", "transductive conv", "product", "given"),
    Row("supervised: all classes have labels", "supervised", "none", "given"),
)
# Nothing of CLIP is trained: compared with MaskCLIP, without and with a head on top.
FREE_ROWS = tuple(
    Row(name, name, "none", "val") for name in ("MaskCLIP", "SCLIP", "ClearCLIP", "NACLIP")
)
CONV_ROWS = tuple(
    Row(f"{row.label} + convolutional head", f"{row.run} conv", "product", "given")
    for row in FREE_ROWS
)
# Of docs/results.md.
SUMMARY_ROWS = (
    Row("ZegCLIP, bias from val", "ZegCLIP", "none", "val"),
    Row("no token, bias from val", "TagCLIP conv", "none", "val"),
    Row("token, target `seen`, bias from val", "TagCLIP token seen", "product", "val"),
    Row("token, target `novel`, bias from val", "TagCLIP token novel", "product", "val"),
    Row("token, target `novel`, bias 0.1 (released)", "TagCLIP token novel", "product", "given"),
    Row("**convolutional head**, bias 0", "TagCLIP conv", "product", "given"),
    Row("transductive, convolutional head", "transductive conv", "product", "given"),
    Row("supervised", "supervised", "none", "given"),
)
# Head -> section and name of a figure.
REJECTED_COLUMNS = {
    "seen pixels lost": ("rejected", "seen pixels lost"),
    "mean of images": ("rejected", "seen pixels lost, mean of images"),
    "unseen pixels lost": ("rejected", "unseen pixels lost"),
    "unlabelled pixels rejected": ("rejected", "unlabelled pixels rejected"),
    "pixels with a class that is not there": (
        "rejected", "pixels with a class that is not in the image"
    ),
    "without the test": ("rejected", "the same without the test"),
    "one word, drawn where absent": ("alone", "words, drawn where absent"),
    "one seen word": ("alone", "seen words, drawn where absent"),
    "one unseen word": ("alone", "unseen words, drawn where absent"),
    "own pixels of a seen word drawn": ("alone", "seen words, own pixels drawn"),
    "of an unseen word": ("alone", "unseen words, own pixels drawn"),
}  # fmt: skip
# Training images that show an unseen class are left out: compared among themselves.
# No kind of map changes the class path: the rows without one are of either run.
STRICT_ROWS = (
    Row("TagCLIP without token", "relative without unseen images", "none", "val"),
    Row("TagCLIP without token", "relative without unseen images", "none", "given"),
    Row("convolutional head, product gate", "conv without unseen images", "product", "given"),
    Row("convolutional head, fitted gate", "conv without unseen images", "additive", "given"),
    Row("convolutional head, gate only lifts", "conv without unseen images", "lift", "given"),
    Row("convolutional head, gate only lifts", "conv without unseen images", "lift", "val"),
    Row("**relative map**", "relative without unseen images", "product", "given"),
    Row("relative map", "relative without unseen images", "product", "val"),
    Row("ZegCLIP (`nnn`)", "ZegCLIP without unseen images", "none", "val"),
    Row("ZegCLIP + relative map (`nnn`)", "ZegCLIP without unseen images", "product", "given"),
)
# Head of a column -> (section, name) of its figure.
_DETECTOR_COLUMNS = {
    **{
        f"{head} {measure}": (section, name)
        for head, name in (("map", "trusty map"), ("score gap", "score gap"))
        for measure, section in DETECTOR_SECTIONS.items()
    },
    "map AUROC, class-balanced": (DETECTOR_SECTIONS["AUROC"], "trusty map, class-balanced"),
    "ECE": ("calibration", "ECE"),
    "perfect map, hIoU": ("oracle", "hIoU"),
    "clutter called unseen": ("clutter", "with the model's gate and bias"),
    "without gate, best bias": ("clutter", "without gate, best bias"),
}


# All training images, with their unlabelled unseen objects.
ALL_ROWS = (
    Row("TagCLIP without token", "TagCLIP conv", "none", "given"),
    Row("**convolutional head**", "TagCLIP conv", "product", "given"),
    Row("relative map", "relative", "product", "given"),
)
# Runs of a table of their own, which compares the two protocols.
PROTOCOL_RUNS = tuple(dict.fromkeys(row.run for row in STRICT_ROWS + ALL_ROWS))
TABLE_RUNS = tuple(dict.fromkeys(row.run for row in ROWS + FREE_ROWS + CONV_ROWS))


def format_table(results: Results) -> str:
    """Return Markdown: for each split the models and what tells seen from unseen pixels.

    Args:
        results: (split, run, seed) -> what `run_one` returned.
    """
    lines = []
    for split in SPLITS:
        own = {key[1:]: result for key, result in results.items() if key[0] == split}
        seeds = sorted({seed for _, seed in own})
        lines += [f"### {split} ({len(seeds)} seeds)", ""]
        lines += list(_models(ROWS, own, {"ZegCLIP": ROWS[0], "no token": ROWS[1]}))
        lines += ["", "Nothing of CLIP trained:", ""]
        bases = {"MaskCLIP": FREE_ROWS[0], "MaskCLIP + head": CONV_ROWS[0]}
        lines += list(_models(FREE_ROWS + CONV_ROWS, own, bases))
        detectors = _detectors(own, TABLE_RUNS)
        lines += ["", "What tells seen from unseen pixels:", "", *detectors, ""]
        swapped = [result["swapped"] for result in own.values() if "swapped" in result]
        if swapped:
            control = mean_and_spread(swapped)
            lines += [
                f"Control, ZegCLIP with the texts of unseen classes swapped: U {control}.",
                "",
            ]
    return "\n".join(lines).rstrip() + "\n"


def format_protocols(results: Results) -> str:
    """Return Markdown: for each split maps under two protocols, and BACKGROUND auto.

    Args:
        results: see `format_table`.
    """
    lines = []
    for split in SPLITS:
        own = {key[1:]: result for key, result in results.items() if key[0] == split}
        seeds = sorted({seed for run, seed in own if run in PROTOCOL_RUNS})
        lines += [f"**{split}** ({len(seeds)} seeds), training images without unseen objects:", ""]
        bases = {"no map": STRICT_ROWS[0], "no map at bias 0": STRICT_ROWS[1]}
        bases["ZegCLIP"] = STRICT_ROWS[-2]
        lines += list(_models(STRICT_ROWS, own, bases))
        lines += ["", "All training images:", ""]
        bases = {"no map at bias 0": ALL_ROWS[0], "convolutional head": ALL_ROWS[1]}
        lines += list(_models(ALL_ROWS, own, bases))
        detectors, rejected = _detectors(own, PROTOCOL_RUNS), _rejected(own)
        lines += ["", "What tells seen from unseen pixels:", "", *detectors]
        lines += ["", "`TEST.BACKGROUND auto`, in percent:", "", *rejected, ""]
    return "\n".join(lines).rstrip() + "\n"


def format_summary(
    results: Results, rows: Sequence[Row] = SUMMARY_ROWS, base: str = "ZegCLIP"
) -> str:
    """Return one Markdown table of all splits: S / U / hIoU, and what is gained over a row.

    Args:
        results: see `format_table`.
        rows: the first is what the others are compared with.
        base: what the first is called in the head of the column.
    """
    columns = [f"{split} S / U / h" for split in SPLITS]
    lines = [f"| model | {' | '.join(columns)} | h minus {base} |", "|" + "---|" * 5]
    for row in rows:
        cells, gains = [row.label], []
        for split in SPLITS:
            own = {key[1:]: result for key, result in results.items() if key[0] == split}
            found = _figures(own, row)
            cells.append(_triple(list(found.values())))
            gains.append("" if row == rows[0] else _difference(found, own, rows[0]))
        cells.append(", ".join(filter(None, gains)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def format_free_summary(results: Results) -> str:
    """Return `format_summary` of what trains nothing of CLIP, then with a head on top."""
    tables = (
        format_summary(results, FREE_ROWS, "MaskCLIP"),
        format_summary(results, CONV_ROWS, "MaskCLIP + head"),
    )
    return "\n".join(tables)


def _triple(figures: Sequence[dict[str, float]]) -> str:
    if not figures:
        return ""
    seen, unseen = (f"{statistics.fmean(f[key] for f in figures):.1f}" for key in "SU")
    return f"{seen} / {unseen} / **{mean_and_spread([f['hIoU'] for f in figures])}**"


def _models(
    rows: Sequence[Row], own: dict[tuple[str, int], dict], bases: dict[str, Row]
) -> Iterator[str]:
    columns = ["model", "gate", "bias", "S", "U", "hIoU", *(f"hIoU minus {b}" for b in bases)]
    yield f"| {' | '.join(columns)} |"
    yield "|" + len(columns) * "---|"
    for row in rows:
        found = _figures(own, row)
        if not found:
            continue
        cells = [row.label, row.gate, _bias(row, found)]
        cells += [mean_and_spread([f[key] for f in found.values()]) for key in ("S", "U", "hIoU")]
        cells += ["" if row == base else _difference(found, own, base) for base in bases.values()]
        yield f"| {' | '.join(cells)} |"


def _difference(
    found: dict[int, dict[str, float]], own: dict[tuple[str, int], dict], base: Row
) -> str:
    reference = _figures(own, base)
    seeds = sorted(found.keys() & reference.keys())
    pairs = [found[seed]["hIoU"] - reference[seed]["hIoU"] for seed in seeds]
    if len(found) == len(reference) == len(pairs) == 1:
        # No seed takes part in either.
        return f"{pairs[0]:+.1f}"
    return paired_interval(pairs) if len(pairs) > 1 else ""


def _figures(own: dict[tuple[str, int], dict], row: Row) -> dict[int, dict[str, float]]:
    """Seed -> figures of a row."""
    found = {seed: result["gates"] for (run, seed), result in own.items() if run == row.run}
    return {seed: gates[row.gate][row.key] for seed, gates in found.items() if row.gate in gates}


def _bias(row: Row, found: dict[int, dict[str, float]]) -> str:
    values = [figures["bias"] for figures in found.values()]
    if row.key == "given":
        return f"{values[0]:g}"
    return f"from val, {statistics.fmean(values):.2f}"


def _detectors(own: dict[tuple[str, int], dict], names: Sequence[str]) -> Iterator[str]:
    heads = ["run", *_DETECTOR_COLUMNS]
    yield f"| {' | '.join(heads)} |"
    yield "|" + len(heads) * "---|"
    for run in filter(names.__contains__, RUNS):
        runs = [result for (name, _), result in own.items() if name == run]
        # One gate: there is no map.
        if not runs or len(RUNS[run].gates) == 1:
            continue
        cells = [
            mean_and_spread([result[section][name] for result in runs])
            for section, name in _DETECTOR_COLUMNS.values()
        ]
        yield f"| {run} | {' | '.join(cells)} |"


def _rejected(own: dict[tuple[str, int], dict]) -> Iterator[str]:
    heads = ["run", *REJECTED_COLUMNS]
    yield f"| {' | '.join(heads)} |"
    yield "|" + len(heads) * "---|"
    for run in PROTOCOL_RUNS:
        runs = [r for (name, _), r in own.items() if name == run and "rejected" in r]
        if runs:
            cells = [
                mean_and_spread([result[section][name] for result in runs])
                for section, name in REJECTED_COLUMNS.values()
            ]
            yield f"| {run} | {' | '.join(cells)} |"


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean and, of several, their standard deviation."""
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def paired_interval(differences: Sequence[float]) -> str:
    """Mean of paired differences and its 95 % interval by Student's t; two or more are needed."""
    mean, count = statistics.fmean(differences), len(differences)
    half = stats.t.ppf(0.975, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
