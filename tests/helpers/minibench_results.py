"""Made-up results of MiniBench's runs, as its tables read them."""

from __future__ import annotations

from typing import Any

from tagclip.projects.minibench.novelty_table import ROWS
from tagclip.projects.minibench.table_runs import RUNS

FIGURES = ("AUROC", "AUPR", "FPR95", "S", "U", "hIoU")


def table_result(split: str, run: str, seed: int, hiou: float) -> dict[str, Any]:
    """Of a run whose hIoU is given."""
    figures = {"bias": 0.1, "S": hiou + 10, "U": hiou - 10, "hIoU": hiou}
    has_map = len(RUNS[run].gates) > 1
    # As json keeps a figure that there is not.
    auroc = 90.0 + seed if has_map else None
    detector = {"trusty map": auroc, "score gap": 80.0, "trusty map, class-balanced": auroc}
    aupr, fpr = 70.0 if has_map else None, 20.0 + 2 * seed if has_map else None
    return {
        "split": split,
        "run": run,
        "seed": seed,
        "seconds": 1.0,
        "detector": detector,
        "detector AUPR": {"trusty map": aupr, "score gap": 60.0},
        "detector FPR at 95 % TPR": {"trusty map": fpr, "score gap": 30.0},
        "calibration": {"ECE": 5.0},
        "oracle": {"hIoU": 95.0},
        "clutter": {"with the model's gate and bias": 80.0, "without gate, best bias": 40.0},
        "gates": {
            gate: {
                "AUSUC": 50.0,
                "given": figures,
                "val": {**figures, "bias": 0.2, "hIoU": hiou + 1},
                "curve": [[0.0, 70.0], [hiou, hiou], [60.0, 0.0]],
            }
            for gate in RUNS[run].gates
        },
    }


def novelty_result(split: str, seed: int, subset: str) -> dict[str, Any]:
    """Made-up figures, which grow from row to row and with the seed."""
    scores = {
        name: {key: (10.0 + row) * seed for key in FIGURES[3 if name == "no map" else 0 :]}
        for row, name in enumerate(ROWS)
    }
    return {"split": split, "seed": seed, "subset": subset, "scores": scores}
