"""Evaluated runs side by side: finding their results, and saying what sets them apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagclip.data.claim import question
from tagclip.errors import ConfigError
from tagclip.evaluation.results import read_metrics
from tagclip.utils.text import json_text, listed

__all__ = ["ClassRow", "RunResult", "class_rows", "differences", "load_results", "questions",
           "repetitions", "training_differences"]  # fmt: skip

# What differs between repetitions of one experiment.
_PER_REPETITION = (
    "seed",
    "weights",
    "weights_sha256",
    "trained_sha256",
    "start",
    "start_sha256",
    "git_commit",
)
# What they share, see `_training`.
_OF_TRAINING = ("iterations", "trained_iterations", "trained_config", "training_files")
_SHORT_HASH = 12
_UNKNOWN = "not recorded"


@dataclass(frozen=True)
class RunResult:
    """One run on one dataset.

    Attributes:
        label: short name of the run.
        content: its ``metrics.json``.
    """

    label: str
    content: dict[str, Any]

    def metric(self, name: str) -> float | None:
        """A metric in percent, by the split of the class list; None where it is undefined."""
        by_split = self.content.get("metrics_by_split") or {}
        return by_split.get(name, self.content["metrics"].get(name, self.conventions.get(name)))

    @property
    def conventions(self) -> dict[str, float | None]:
        """The mean IoU by other definitions that a score counted: "mIoU by mmseg"."""
        found = self.content.get("conventions") or {}
        return {f"mIoU by {name}": values.get("mIoU") for name, values in found.items()}

    @property
    def is_seen_by_masks(self) -> bool:
        """Whether its classes are called seen by the masks of training, against the split."""
        return bool(self.content.get("metrics_by_split"))

    @property
    def iterations(self) -> int | None:
        """How long the weights were trained; None where the result does not say."""
        own = self.run("iterations")
        return self.run("trained_iterations") if own is None else own

    def run(self, key: str) -> Any:
        """What the run says about itself; None if it does not."""
        return self.content["run"].get(key)


@dataclass(frozen=True)
class ClassRow:
    """One class in all runs.

    Attributes:
        name: display name.
        seen: as the first run reports it, see `RunResult.is_seen_by_masks`; None without a
            partition.
        iou: one value per run in percent, nan where undefined.
        difference: mean of the other runs minus the first, in percentage points; the IoU itself
            for a single run.
    """

    name: str
    seen: bool | None
    iou: tuple[float, ...]
    difference: float


def load_results(runs: Sequence[str], dataset: str = "") -> dict[str, list[RunResult]]:
    """Read the results of each dataset that all runs have.

    Args:
        runs: OUTPUT_DIR of a run, one of its inference/<dataset> folders, or a ``metrics.json``.
        dataset: only this one; "" takes all that the runs have in common.

    Returns:
        Dataset -> one result per run, in their order.

    Raises:
        ConfigError: a run is named twice or has no result (on the dataset), or nothing is common.
    """
    labels = _labels_of(runs)
    contents = [_contents_of(run) for run in runs]
    for run, own in zip(runs, contents, strict=True):
        if dataset and dataset not in own:
            raise ConfigError(
                f"--dataset: found no result on {dataset!r} in {run}, expected one of "
                f"{', '.join(sorted(own))}"
            )
    common = {dataset} if dataset else set.intersection(*map(set, contents))
    if not common:
        found = zip(runs, contents, strict=True)
        texts = [f"{run} on {', '.join(sorted(own))}" for run, own in found]
        raise ConfigError(
            f"found results of {'; '.join(texts)}, expected a dataset that all runs share; "
            "evaluate them on the same one"
        )
    return {
        name: [RunResult(label, own[name]) for label, own in zip(labels, contents, strict=True)]
        for name in sorted(common)
    }


def _contents_of(run: str) -> dict[str, dict[str, Any]]:
    path = Path(run)
    if path.is_file():
        files = [path]
    elif path.parent.name == "inference":
        files = list(path.glob("metrics.json"))
    else:
        files = sorted(path.glob("inference/*/metrics.json"))
    if not files:
        found = "no inference/<dataset>/metrics.json in it" if path.is_dir() else "no such folder"
        raise ConfigError(f"{run}: {found}; name the OUTPUT_DIR of a run that has been evaluated")
    contents = {file: read_metrics(file) for file in files}
    # A copy of a result, kept under another name beside it, is not that of the run any more.
    own = {f: c for f, c in contents.items() if f.parent.name == c["dataset"]} or contents
    found = {content["dataset"]: content for content in own.values()}
    if len(found) < len(own):
        raise ConfigError(
            f"{run}: found several results of {', '.join(found)} in folders of other names, "
            f"{listed([file.parent.name for file in own], 3)}, expected one of each; name the one "
            "that is meant"
        )
    return found


def _labels_of(runs: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell all of them apart."""
    paths = [Path(run).resolve() for run in runs]
    twice = [run for run, path in zip(runs, paths, strict=True) if paths.count(path) > 1]
    if twice:
        raise ConfigError(f"{twice[-1]}: the run is named twice; name it once")
    ends = (["/".join(path.parts[-length:]) for path in paths] for length in itertools.count(1))
    return next(labels for labels in ends if len(set(labels)) == len(labels))


def differences(results: Sequence[RunResult]) -> list[str]:
    """Say what forbids to compare runs with the first one: one line per run and fact."""
    first = results[0]
    lines = []
    for other in results[1:]:
        pairs = zip(_facts(first).items(), _facts(other).values(), strict=True)
        lines += [
            f"{other.label} is not comparable with {first.label}: {fact} is {found}, not {expected}"
            for (fact, expected), found in pairs
            if found != expected
        ]
        if text := _other_labels(first, other):
            lines.append(f"{other.label} is not comparable with {first.label}: {text}")
    return lines


def training_differences(results: Sequence[RunResult]) -> list[str]:
    """Say which runs were trained otherwise than the first one, beside the seed: one line each."""
    first = results[0]
    found = ((other.label, _otherwise_trained(first, other)) for other in results[1:])
    return [
        f"{label} was trained otherwise than {first.label}, no repetition of it: {text}"
        for label, text in found
        if text
    ]


def _otherwise_trained(first: RunResult, other: RunResult) -> str:
    """What differs between two trainings but the seed; "" if nothing is known to."""
    rows = zip(_training(first).items(), _training(other).values(), strict=True)
    return "; ".join(
        f"{what} {found}, not {expected}"
        for (what, expected), found in rows
        if None not in (expected, found) and expected != found
    )


def _training(result: RunResult) -> dict[str, Any]:
    """What repetitions share; None is what earlier versions did not record, taken as the same."""
    files = result.run("training_files")
    return {
        "iterations": result.iterations,
        "config of the training (hash)": result.run("trained_config"),
        "training images and label files (hash)": files and files[:_SHORT_HASH],
    }


def questions(results: Sequence[RunResult]) -> list[str]:
    """What nobody has decided about the classes of a run: one line per run that has such pairs."""
    asked = ((result.label, question(result.run("similar_names"))) for result in results)
    return [f"{label}: {text}" for label, text in asked if text]


def _facts(result: RunResult) -> dict[str, str]:
    content = result.content
    fingerprint = str(content.get("vocabulary_fingerprint"))
    return {
        "class list": f"{content.get('vocabulary')} {fingerprint[:_SHORT_HASH]}",
        "split": repr(content.get("split")),
        "number of images": str(content.get("images")),
        "protocol": _protocol(result),
        "list of trained classes": _short(result.run("training_vocabulary")),
        "CLIP sha256": _short(result.run("clip_sha256")),
    }


def _other_labels(first: RunResult, other: RunResult) -> str:
    """What tells that two runs were evaluated on other images or labels; "" if nothing does.

    The labelled pixels of a class are those of the label files, whatever was predicted.
    """
    expected, found = map(_labelled_pixels, (first, other))
    # Of a class whose pixels were not recorded nothing is known.
    changed = [
        name
        for name, pixels in expected.items()
        if None not in (pixels, found.get(name)) and found[name] != pixels
    ]
    if not changed:
        return ""
    name = changed[0]
    return (
        f"its images or labels are others: {found[name]} labelled pixels of {name!r}, not "
        f"{expected[name]} ({len(changed)} of {len(expected)} classes differ)"
    )


def _labelled_pixels(result: RunResult) -> dict[str, int | None]:
    return {row["name"]: row.get("pixels") for row in result.content["classes"]}


def _short(fingerprint: str | None) -> str:
    return _UNKNOWN if fingerprint is None else fingerprint[:_SHORT_HASH]


def _protocol(result: RunResult) -> str:
    """Which labels training read; how the model was trained on them is no matter of protocol."""
    # Said by `Protocol.summary` wherever a key makes training do so.
    reads_novel = "reads where" in str(result.run("protocol"))
    text = result.run("setting") or _UNKNOWN
    text += ", which reads where unseen pixels are" * reads_novel
    if trained := result.run("trained_unseen"):
        text += f", not zero-shot (masks of {len(trained)} unseen classes)"
    for what, names in (result.run("earlier_traces") or {}).items():
        text += f", a training before {what} {len(names)} unseen classes"
    # Results of before this was recorded say neither.
    if "zero_shot" in result.content["run"] and result.run("zero_shot") is None:
        text += ", ancestry unknown"
    return text


def repetitions(results: Sequence[RunResult]) -> list[list[RunResult]]:
    """Groups of runs on the same labels that differ in nothing but the seed, two seeds or more."""
    groups: list[tuple[str, list[RunResult]]] = []
    for result in results:
        run = result.content["run"].items()
        run = {k: v for k, v in run if k not in (*_PER_REPETITION, *_OF_TRAINING)}
        key = json_text([_facts(result), _labelled_pixels(result), run], sort_keys=True)
        for other, group in groups:
            if other == key and not any(_otherwise_trained(each, result) for each in group):
                group.append(result)
                break
        else:
            groups.append((key, [result]))
    return [group for _, group in groups if len({r.run("seed") for r in group}) > 1]


def class_rows(results: Sequence[RunResult]) -> list[ClassRow]:
    """Classes that all runs have, by name, from the largest gain to the largest loss.

    Classes without a defined difference come last, in the order of the first run.
    """
    tables = [{entry["name"]: entry for entry in result.content["classes"]} for result in results]
    rows = []
    for name, entry in tables[0].items():
        if not all(name in table for table in tables):
            continue
        iou = tuple(_number(table[name]["IoU"]) for table in tables)
        others = iou[1:]
        difference = sum(others) / len(others) - iou[0] if others else iou[0]
        rows.append(ClassRow(name, entry["seen"], iou, difference))
    return sorted(rows, key=lambda row: math.inf if math.isnan(row.difference) else -row.difference)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
