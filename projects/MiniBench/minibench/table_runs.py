"""One run of MiniBench's table: train, then measure every gate and bias from one pass."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from tagclip import TagCLIP, TagCLIPPredictor, Vocabulary, ZeroShotTrainer, load_config
from tagclip.analysis.bias_curves import BiasCurve
from tagclip.analysis.gate_analysis import DETECTOR_SECTIONS
from tagclip.analysis.gate_comparison import compare_gates
from tagclip.data import Protocol
from tagclip.engine.finished_run import refuse_finished_run
from tagclip.engine.own_folder import own_folder
from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.inference.gate import Gate
from tagclip.projects import import_projects
from tagclip.projects.minibench.asked_alone import measure_words_alone
from tagclip.utils.files import make_folder
from tagclip.utils.text import error_text
from tagclip.utils.untrusted import load_json

__all__ = [
    "RUNS",
    "SPLITS",
    "TableRun",
    "gates_of",
    "missing_sections",
    "read_result",
    "run_config",
    "run_folder",
    "run_one",
    "swap_unseen_prompts",
    "trained_model",
]

SPLITS = ("composition", "noun_fence_board", "noun_dice_board")
# Of `GateAnalysis.figures`, what a result keeps.
_SECTIONS = (*DETECTOR_SECTIONS.values(), "clutter", "calibration", "oracle")
# Scale and bias of the additive gate by protocol and split, as `tagclip fit-gate` found them.
_CONSTANTS = Path(__file__).with_name("gate_constants.json")


@dataclass(frozen=True)
class TableRun:
    """What is trained and how it is asked.

    Attributes:
        config: name in the model zoo, {} is the split.
        bias: the seen bias that is reported beside the chosen one.
        gates: forms of the gate; ``none`` leaves the trusty map out.
        opts: more keys and values.
        constants: key of the additive gate's constants.
        start: run whose half-way checkpoint it starts from; "" is CLIP.
        seeds: at most so many; None: all.
    """

    config: str
    bias: float
    gates: tuple[str, ...] = ("none", "product")
    opts: tuple[str, ...] = ()
    constants: str = "all images"
    start: str = ""
    seeds: int | None = None


_MINI = "minibench/tagclip_minibench_{}"
_CONV = f"{_MINI}_convtrust.yaml"
_RELATIVE = f"{_MINI}_relative.yaml"
_FREE = "trainingfree/{}_minibench_{{}}"
_METHODS = {"MaskCLIP": "maskclip", "SCLIP": "sclip", "ClearCLIP": "clearclip", "NACLIP": "naclip"}
_OTHER = ("MODEL.TAGCLIP.TEST.BACKGROUND", "auto")
_DICE = ("MODEL.TAGCLIP.TRUSTY.LOSS", "dice")
RUNS = {
    **{
        name: TableRun(f"{_FREE.format(config)}.yaml", 0.0, ("none",), seeds=1)
        for name, config in _METHODS.items()
    },
    **{
        f"{name} conv": TableRun(f"{_FREE.format(config)}_convtrust.yaml", 0.0)
        for name, config in _METHODS.items()
    },
    # The class path of a model with a convolutional head is that of the model without any.
    "ZegCLIP": TableRun(_CONV, 0.0, opts=("MODEL.TAGCLIP.LAYERS", "nnn")),
    "TagCLIP conv": TableRun(_CONV, 0.0, ("none", "product", "additive", "lift")),
    "TagCLIP token seen": TableRun(f"{_MINI}.yaml", 0.1),
    "TagCLIP token novel": TableRun(f"{_MINI}_novel.yaml", 0.1),
    "TagCLIP token seen Dice": TableRun(f"{_MINI}.yaml", 0.1, opts=_DICE, seeds=3),
    "TagCLIP token novel Dice": TableRun(f"{_MINI}_novel.yaml", 0.1, opts=_DICE, seeds=3),
    "conv without unseen images": TableRun(
        _CONV,
        0.0,
        ("none", "product", "additive", "lift"),
        opts=("DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES", "True"),
        constants="without unseen images",
    ),
    "relative without unseen images": TableRun(_RELATIVE, 0.0, opts=_OTHER),
    "ZegCLIP without unseen images": TableRun(
        _RELATIVE, 0.0, opts=(*_OTHER, "MODEL.TAGCLIP.LAYERS", "nnn")
    ),
    "relative": TableRun(
        _RELATIVE, 0.0, opts=(*_OTHER, "DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES", "False")
    ),
    "transductive token": TableRun(
        f"{_MINI}_transductive.yaml", 0.1, start="TagCLIP token seen", seeds=1
    ),
    "transductive conv": TableRun(
        f"{_MINI}_transductive_convtrust.yaml", 0.0, start="TagCLIP conv", seeds=3
    ),
    "supervised": TableRun("minibench/tagclip_minibench_supervised.yaml", 0.0, ("none",), seeds=1),
}


def run_folder(output: Path, split: str, name: str, seed: int) -> Path:
    """Where a run of the table keeps its files."""
    return output / f"{split}-{name.replace(' ', '_')}-{seed}"


def run_one(split: str, name: str, seed: int, output: Path) -> dict[str, Any]:
    """Train one model and measure it; constants are chosen on ``val``, figures are of ``test``.

    Args:
        split: one of `SPLITS`, which is the partition of the report.
        name: key of `RUNS`.
        seed: of initial values, data order and augmentation.
        output: see `run_folder`; the run it starts from is there, too.

    Returns:
        JSON-ready dict: ``gates`` (name -> figures in percent), sections of
        `GateAnalysis.figures` (detectors, ``clutter``, ``calibration``, ``oracle``), ``swapped``
        and ``seconds``, CPU time of the training in this process; with BACKGROUND auto ``rejected``
        and ``alone``, see `measure_words_alone`.
    """
    run = RUNS[name]
    cfg = run_config(split, name, seed, output)
    start = time.process_time()
    model = trained_model(cfg)
    seconds = time.process_time() - start
    vocabulary = Protocol(cfg).asked("minibench_test")
    partition = Vocabulary.from_metadata("minibench_test", split)
    gates = gates_of(run, split)
    val, test = (
        compare_gates(cfg, model, f"minibench_{subset}", vocabulary, partition, gates)
        for subset in ("val", "test")
    )
    figures = test["product" if "product" in test else "none"].figures()
    result = {"split": split, "run": name, "seed": seed, "seconds": round(seconds, 1)}
    result |= {key: figures[key] for key in _SECTIONS}
    if "rejected" in figures:
        result["rejected"] = figures["rejected"]
        cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
        samples = DatasetCatalog.get("minibench_test")
        result["alone"] = measure_words_alone(TagCLIPPredictor(cfg), samples, partition)
    result["gates"] = {
        gate: _gate_figures(test[gate].bias, val[gate].curves["own"], test[gate].curves["own"])
        for gate in gates
    }
    if name == "ZegCLIP":
        swapped, plain = swap_unseen_prompts(vocabulary), {"none": gates["none"]}
        curve = compare_gates(cfg, model, "minibench_test", swapped, partition, plain)[
            "none"
        ].curves
        result["swapped"] = float(curve["own"].unseen[curve["own"].at(0.0)])
    return result


def read_result(path: Path, **run: Any) -> dict[str, Any]:
    """Read the result that is kept of a run.

    Args:
        path: json file.
        run: entries by which the result says what it is of.

    Raises:
        ConfigError: the file is damaged, or of another run.
    """
    remedy = "remove it, and the same command does that run again"
    try:
        result = load_json(path.read_text(encoding="utf-8"))
        found = {key: result[key] for key in run}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{path}: found no result in it ({error_text(error)}), expected that of {_named(run)}; "
            f"{remedy}"
        ) from error
    if found != run:
        raise ConfigError(
            f"{path}: found the result of {_named(found)}, expected that of {_named(run)}; {remedy}"
        )
    return result


def _named(run: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in run.items())


def missing_sections(result: dict[str, Any]) -> list[str]:
    """Sections of figures that a result lacks, because an earlier version wrote it."""
    opts = RUNS[result["run"]].opts
    wanted = _SECTIONS + ("rejected", "alone") * (_OTHER[0] in opts)
    return [section for section in wanted if section not in result]


def run_config(split: str, name: str, seed: int, output: Path) -> CfgNode:
    """Make the config of a run, its projects imported, and its folder; see `run_one`.

    Raises:
        CheckpointError: the run that it starts from has not been done.
    """
    run, folder = RUNS[name], run_folder(output, split, name, seed)
    weights = ""
    if run.start:
        weights = str(run_folder(output, split, run.start, seed) / "model_0000159.pth")
        if not Path(weights).is_file():
            raise CheckpointError(
                f"{weights}: no such checkpoint, from which {name!r} starts; do that run first: "
                f"tagclip minibench table --output {output} --one {split} {run.start!r} {seed}"
            )
    opts = ["SEED", str(seed), "OUTPUT_DIR", str(folder), "MODEL.WEIGHTS", weights, *run.opts]
    cfg = load_config(run.config.format(split), [*opts, "DATASETS.TEST", "()"])
    cfg.DATASETS.TEST = ("minibench_test",)
    cfg.TEST.EVAL_PERIOD = 0
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    import_projects(cfg.PROJECTS)
    make_folder(folder)
    return cfg


def trained_model(cfg: CfgNode) -> TagCLIP:
    """Train, unless that is done, or nothing can be trained.

    Raises:
        ConfigError: another run is at work in OUTPUT_DIR, or what is there is of another config.
    """
    if cfg.MODEL.CLIP.LAST_BLOCK != "clip" and not cfg.MODEL.TAGCLIP.TRUSTY.ENABLED:
        return ZeroShotTrainer.build_model(cfg).eval()
    with own_folder(cfg.OUTPUT_DIR):
        trainer = ZeroShotTrainer(cfg)
        # The table would show it under the name of this one.
        refuse_finished_run(
            cfg.OUTPUT_DIR,
            trainer.checkpointer.metadata,
            cfg.MODEL.WEIGHTS,
            "move it away, or name another --output",
            unfinished=True,
        )
        trainer.resume_or_load(resume=True)
        trainer.train()
    return trainer.model.eval()


def gates_of(run: TableRun, split: str) -> dict[str, Gate]:
    """Name -> gate with the run's own bias."""
    constants = json.loads(_CONSTANTS.read_text(encoding="utf-8"))[run.constants][split]
    known = {
        "none": Gate("none", bias=run.bias),
        "product": Gate(bias=run.bias),
        "additive": Gate(form="additive", bias=constants["bias"], scale=constants["scale"]),
        "lift": Gate(form="lift", bias=run.bias),
    }
    return {name: known[name] for name in run.gates}


def _gate_figures(bias: float, val: BiasCurve, test: BiasCurve) -> dict[str, Any]:
    """Figures on test at a given bias, at the one with the best hIoU on val, and all others."""
    finite = np.clip(val.biases[val.best()], test.biases[1], test.biases[-2])
    figures: dict[str, Any] = {"AUSUC": test.area()}
    for key, value in (("given", bias), ("val", float(finite))):
        at = test.at(value)
        figures[key] = {
            "bias": value,
            "S": float(test.seen[at]),
            "U": float(test.unseen[at]),
            "hIoU": float(test.hiou[at]),
        }
    thin = test.thinned(0.5)
    figures["curve"] = np.round(np.stack([thin.unseen, thin.seen], 1), 2).tolist()
    return figures


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
