"""Analysis of a run on disk, from the logits that its evaluation saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from tagclip.analysis.confusions import Confusion, group_confusions, list_confusions
from tagclip.analysis.gate_analysis import GateAnalysis
from tagclip.analysis.result_images import Ranked
from tagclip.data import Protocol, read_indices
from tagclip.data.datasets.register import other_parts
from tagclip.errors import ConfigError
from tagclip.evaluation.metrics import per_class, summarize
from tagclip.evaluation.run_folder import is_score
from tagclip.evaluation.saved_logits import SavedLogits
from tagclip.modeling.inference.fusion import InferenceSettings
from tagclip.structures.vocabulary import Vocabulary

__all__ = [
    "AnalyzedRun",
    "analyze_run",
    "analyzed_vocabulary",
    "crossing_confusions",
    "refuse_other_data",
]

# In percent: half precision moves a few pixels on the border of two classes.
_TOLERANCE = 0.5
# Confusions of a kind that are kept.
_ROWS = 50

Samples = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class AnalyzedRun:
    """A run and what its logits tell.

    Attributes:
        label: short name of the run.
        content: its ``metrics.json``.
        vocabulary: the classes, seen as for the model.
        saved: its logits.
        analysis: of all images.
        ranking: images with labelled pixels, by mIoU over their own classes, best first.
    """

    label: str
    content: Mapping[str, Any]
    vocabulary: Vocabulary
    saved: SavedLogits
    analysis: GateAnalysis
    ranking: list[Ranked]

    @property
    def gate(self) -> Mapping[str, Any]:
        """The `Gate` of the evaluation, as json."""
        return self.saved.index["gate"]

    @property
    def verdict(self) -> str:
        """One sentence: whether the gate helps on these images, each with its own best bias."""
        if not self.analysis.has_gate:
            return "No gate: this run makes no use of a trusty map."
        figures = self.analysis.figures()
        own, none = figures["own"], figures["none"]
        with_gate, without = (round(each["best hIoU"], 2) for each in (own, none))
        change = with_gate - without
        word = "helps" if change > 0 else "hurts" if change < 0 else "makes no difference"
        return (
            f"The gate {word} here: with the best bias of each, hIoU is {with_gate:.2f} with the "
            f"gate and {without:.2f} without ({change:+.2f}); with the configured bias "
            f"{own['bias']:g}, {own['hIoU']:.2f} and {none['hIoU']:.2f}."
        )

    def json(self) -> dict[str, Any]:
        """Everything that was found, ready for json."""
        names = self.vocabulary.names
        confusions = {
            kind: [[names[p.true], names[p.predicted], p.share, p.pixels] for p in pairs]
            for kind, pairs in crossing_confusions(self.analysis).items()
        }
        index = {key: self.saved.index[key] for key in ("dataset", "images", "split", "vocabulary")}
        about = {"label": self.label, **index, "gate": self.gate}
        about["trusty_target"] = self.saved.index["trusty_target"]
        return (
            about | self.analysis.content() | {"confusions": confusions, "run": self.content["run"]}
        )


def crossing_confusions(analysis: GateAnalysis) -> dict[str, list[Confusion]]:
    """Unseen classes taken for seen ones and the reverse, with the model's gate and bias."""
    pairs = list_confusions(analysis.confusion, analysis.confusion.sum(axis=1))
    groups = group_confusions(pairs, analysis.seen, _ROWS)
    return {k: found for k, found in groups.items() if k.split()[0] != k.split()[-1]}


def analyzed_vocabulary(run: Path, cfg: CfgNode, dataset: str) -> Vocabulary:
    """Read the classes of a run, before its logits: without both parts these tell nothing.

    Args:
        run: its OUTPUT_DIR.
        cfg: its config.
        dataset: registered name.

    Raises:
        TagCLIPError: the run is the output of ``tagclip score``, all classes are on one side, or
            the dataset is not here.
    """
    if is_score(run / "inference" / dataset / "metrics.json"):
        raise ConfigError(
            f"{run}: found the output of tagclip score, whose predictions have no logits, "
            "expected the OUTPUT_DIR of an evaluation; name one"
        )
    vocabulary = Protocol(cfg).asked(dataset)
    seen = vocabulary.seen_mask
    if seen.all() or not seen.any():
        raise ConfigError(
            f"{run}: found {seen.sum()} seen of {len(seen)} classes on {dataset}, expected seen "
            "and unseen ones; analyze a run whose split has both, or name another --dataset"
        )
    return vocabulary


def refuse_other_data(runs: Sequence[str], parts: Sequence[dict[str, str]], dataset: str) -> None:
    """Refuse runs that mean other images, labels or classes by the name of the analyzed dataset.

    Args:
        runs: OUTPUT_DIR of each.
        parts: `registered_parts` of its dataset.
        dataset: its name.

    Raises:
        ConfigError: names two of the runs, and what differs.
    """
    for run, found in zip(runs, parts, strict=True):
        if other := other_parts(parts[0], found):
            raise ConfigError(
                f"{run}: found dataset {dataset} with {other} as in "
                f"{runs[0]}; analyze each of the two by itself, or evaluate one with the dataset "
                "of the other"
            )


def analyze_run(
    run: Path,
    cfg: CfgNode,
    content: Mapping[str, Any],
    label: str,
    device: str = "cpu",
    progress: Callable[[Samples], Iterable[dict[str, Any]]] = iter,
) -> AnalyzedRun:
    """Read the logits of all images once.

    Args:
        run: its OUTPUT_DIR.
        cfg: its config.
        content: its ``metrics.json`` on the dataset.
        label: what to call it.
        device: where scores are computed.
        progress: samples -> the same samples, one after the other.

    Raises:
        TagCLIPError: see `analyzed_vocabulary`; logits were not saved, are damaged or of another
            evaluation, or a label file has changed.
    """
    dataset = content["dataset"]
    vocabulary, samples = analyzed_vocabulary(run, cfg, dataset), DatasetCatalog.get(dataset)
    images = [sample["file_name"] for sample in samples]
    saved = SavedLogits.of_run(run, cfg, dataset, vocabulary, images)
    gate = saved.index["gate"]
    has_gate = saved.index["trusty_target"] is not None and gate["mode"] != "none"
    analysis = GateAnalysis(vocabulary.seen_mask, gate["bias"], has_gate)
    ranking, evaluated = [], set(saved.evaluated(images))
    for sample in progress([s for s in samples if s["file_name"] in evaluated]):
        with torch.inference_mode():
            image = sample["file_name"]
            fusion, size = saved.read(image, device)
            truth = read_indices(sample["sem_seg_file_name"], vocabulary, size, image=image)
            confusion = analysis.add(truth, fusion, size)
        present = confusion.any(axis=1)
        if present.any():
            score = float(np.nanmean(per_class(confusion)["IoU"]))
            both = bool(present[analysis.seen].any() and present[~analysis.seen].any())
            ranking.append(Ranked(score, sample, both))
    has_threshold = InferenceSettings.from_config(cfg).background_threshold > 0
    _check(saved.folder, analysis, content, has_threshold)
    ranking.sort(key=lambda each: (-each.score, each.sample["file_name"]))
    return AnalyzedRun(label, content, vocabulary, saved, analysis, ranking)


def _check(
    folder: Path, analysis: GateAnalysis, content: Mapping[str, Any], has_threshold: bool
) -> None:
    """Refuse logits, or labels, that are not those of the result beside them.

    With BACKGROUND_THRESHOLD, pixels have no class in the result, but one here: no comparison.
    """
    labelled = analysis.confusion.sum(axis=1).tolist()
    stored = [entry["pixels"] for entry in content["classes"]]
    if labelled != stored:
        name = next(
            e["name"] for e, n in zip(content["classes"], labelled, strict=True) if n != e["pixels"]
        )
        raise ConfigError(
            f"{folder}: found logits whose images have other labels now than in the metrics.json "
            f"beside them, of {name} for one, expected the same; evaluate again with "
            f"{SavedLogits.kind.save}"
        )
    rejected = analysis.rejected
    confusion = analysis.confusion if rejected is None else rejected.confusion
    found, stored = summarize(confusion, None)["mIoU"], content["metrics"]["mIoU"]
    if not has_threshold and abs(found - stored) > _TOLERANCE:
        raise ConfigError(
            f"{folder}: found logits that reach mIoU {found:.2f}, expected the {stored:.2f} of the "
            "metrics.json beside them; evaluate again with TEST.SAVE_LOGITS True"
        )
