"""One row of MiniBench's table: train, then measure every gate from one pass over the images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog

from tagclip import TagCLIP, Vocabulary, ZeroShotTrainer, load_config
from tagclip.data import query_vocabulary, read_label
from tagclip.evaluation import auroc, confusion_matrix, summarize
from tagclip.modeling.gating import gate_scores
from tagclip.projects import import_projects

__all__ = ["SPLITS", "VARIANTS", "Gate", "format_table", "measure", "run_one"]

SPLITS = ("composition", "noun_fence_board", "noun_dice_board")
# Variant -> config file, {} is the split.
VARIANTS = {
    "no token": "notrusty_{}.yaml",
    "target seen": "tagclip_{}.yaml",
    "target novel": "tagclip_{}_novel.yaml",
}
SUPERVISED = "supervised"
_BIASES = [round(0.05 * i, 2) for i in range(13)]
_CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True)
class Gate:
    """A setting of ``MODEL.TAGCLIP.TEST``: which side the trusty map multiplies, and the bias."""

    mode: str
    bias: float


def run_one(split: str, variant: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one model and measure it.

    Args:
        split: one of `SPLITS`, or `SUPERVISED` with variant "no token".
        variant: key of `VARIANTS`.
        seed: of initial values, data order and augmentation.
        folder: for checkpoints and logs.

    Returns:
        JSON-ready dict: ``results`` (row name -> metrics in percent on the test set),
        ``bias`` (row name -> bias), ``auroc``, ``swapped`` and ``seconds``.
    """
    name = "supervised.yaml" if split == SUPERVISED else VARIANTS[variant].format(split)
    cfg = load_config(
        _CONFIGS / name, ["SEED", str(seed), "OUTPUT_DIR", str(folder), "DATASETS.TEST", "()"]
    )
    cfg.DATASETS.TEST = ("minibench_test",)
    cfg.TEST.EVAL_PERIOD = 0
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    import_projects(cfg.PROJECTS)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    trainer = ZeroShotTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    seconds = time.process_time() - start
    model = trainer.model.eval()
    vocabulary = query_vocabulary(cfg, "minibench_test")
    partition = Vocabulary.from_metadata("minibench_test", "" if split == SUPERVISED else split)
    modes = ["none"] if variant == "no token" else ["none", "both"]
    grid = [Gate(mode, bias) for mode in modes for bias in _BIASES]
    val = measure(cfg, model, "minibench_val", vocabulary, partition, grid)[0]
    rows = {f"{mode}, bias 0.1": Gate(mode, 0.1) for mode in modes}
    for mode in modes:
        candidates = [gate for gate in grid if gate.mode == mode]
        best = max(candidates, key=lambda gate: val[gate]["hIoU"])
        rows[f"{mode}, bias from val"] = best
    test, trusty = measure(
        cfg, model, "minibench_test", vocabulary, partition, dict.fromkeys(rows.values())
    )
    result = {
        "split": split,
        "variant": variant,
        "seed": seed,
        "results": {row: test[gate] for row, gate in rows.items()},
        "bias": {row: gate.bias for row, gate in rows.items()},
        "auroc": trusty,
        "seconds": round(seconds, 1),
    }
    if split != SUPERVISED:
        swapped = swap_unseen_prompts(vocabulary)
        control = Gate("none", 0.1)
        found = measure(cfg, model, "minibench_test", swapped, partition, [control])[0]
        result["swapped"] = found[control]["mIoU-unseen"]
    return result


def swap_unseen_prompts(vocabulary: Vocabulary) -> Vocabulary:
    """Give every unseen class the text of another one: transfer through text must collapse.

    The list is turned by half its length: with two unseen nouns, each class gets the other noun
    in its own colour.
    """
    unseen = [k for k, seen in enumerate(vocabulary.seen_mask) if not seen]
    shift = max(len(unseen) // 2, 1)
    donor = dict(zip(unseen, unseen[shift:] + unseen[:shift], strict=True))
    classes = tuple(
        replace(entry, prompts=vocabulary.classes[donor.get(k, k)].prompts)
        for k, entry in enumerate(vocabulary.classes)
    )
    return replace(vocabulary, classes=classes)


def measure(
    cfg: Any,
    model: TagCLIP,
    dataset: str,
    vocabulary: Vocabulary,
    partition: Vocabulary,
    gates: Iterable[Gate],
) -> tuple[dict[Gate, dict[str, float]], float]:
    """Evaluate several gates with one forward pass per image.

    Args:
        cfg: config of the loader.
        model: in evaluation mode.
        dataset: registered name.
        vocabulary: what is asked, with seen as the model was trained.
        partition: same classes, with the partition of the report.
        gates: settings to try.

    Returns:
        Gate -> metrics of `summarize`, and the trusty map's AUROC (nan without a token).
    """
    gates = list(gates)
    truths = {item["file_name"]: item["sem_seg_file_name"] for item in DatasetCatalog.get(dataset)}
    lut = partition.label_lut()
    confusion = {gate: np.zeros((len(vocabulary),) * 2, dtype=np.int64) for gate in gates}
    trusty = np.zeros((2, 256), dtype=np.int64)
    for (item,) in ZeroShotTrainer.build_test_loader(cfg, dataset):
        truth = lut[read_label(truths[item["file_name"]])]
        fusion = model.encode(item["image"], vocabulary)
        for gate in gates:
            score = partial(gate_scores, mode=gate.mode, bias=gate.bias)
            output = replace(fusion, gate=score).labels((item["height"], item["width"]))
            labels = output["sem_seg_labels"].cpu().numpy()
            confusion[gate] += confusion_matrix(truth, labels, len(vocabulary))
        if "trusty" in output:
            bins = (output["trusty"].float() * 255).round().int().cpu().numpy()
            labelled = truth < len(vocabulary)
            seen = partition.seen_mask[truth[labelled]]
            for row, mask in enumerate((seen, ~seen)):
                trusty[row] += np.bincount(bins[labelled][mask], minlength=256)
    metrics = {gate: summarize(matrix, partition.seen_mask) for gate, matrix in confusion.items()}
    return metrics, auroc(*trusty)


def format_table(runs: list[dict[str, Any]]) -> str:
    """Return Markdown: one table per split, mean and standard deviation over the seeds."""
    lines = []
    for split in (*SPLITS, SUPERVISED):
        chosen = [run for run in runs if run["split"] == split]
        if not chosen:
            continue
        seeds = sorted({run["seed"] for run in chosen})
        lines += [f"**{split}** ({len(seeds)} seeds)", ""]
        lines += ["| model | gate | S | U | hIoU | mIoU | trusty AUROC | hIoU minus no token |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        base = _by_seed(chosen, "no token", "none, bias from val")
        for variant in VARIANTS:
            own = [run for run in chosen if run["variant"] == variant]
            for row in own[0]["results"] if own else ():
                cells = [
                    _mean([run["results"][row][key] for run in own])
                    for key in ("mIoU-seen", "mIoU-unseen", "hIoU", "mIoU")
                ]
                here = _by_seed(own, variant, row)
                paired = [here[seed] - base[seed] for seed in seeds if seed in here]
                has_token = variant != "no token"
                cells.append(_mean([run["auroc"] for run in own]) if has_token else "")
                cells.append(_mean(paired, sign=True) if has_token else "")
                lines.append(f"| {variant} | {row} | {' | '.join(cells)} |")
        swapped = [run["swapped"] for run in chosen if "swapped" in run]
        if swapped:
            lines += ["", f"Control, texts of unseen classes swapped: U {_mean(swapped)}."]
        lines.append("")
    return "\n".join(lines)


def _by_seed(runs: list[dict[str, Any]], variant: str, row: str) -> dict[int, float]:
    return {run["seed"]: run["results"][row]["hIoU"] for run in runs if run["variant"] == variant}


def _mean(values: list[float], sign: bool = False) -> str:
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    mean = f"{statistics.fmean(values):{'+' if sign else ''}.1f}"
    return f"{mean} ± {spread:.1f}"
