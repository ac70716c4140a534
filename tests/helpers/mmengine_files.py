"""Checkpoints as mmengine 0.10 writes them, without mmengine: with numpy, buffers and methods."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

_MODULE = "mmengine.logging.history_buffer"


class HistoryBuffer:
    """A learning curve; its pickle holds methods, which are pickled as calls of ``getattr``."""

    def __init__(self, values: list[float]) -> None:
        self.max_length = 1_000_000
        self._log_history, self._count_history = np.array(values), np.ones(len(values), int)

    def mean(self) -> float:
        return float(self._log_history.mean())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"statistics_methods": {"mean": HistoryBuffer.mean}}


def save_mmengine(path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a checkpoint of a state dict, as mmengine's Runner does with an EMAHook."""
    with monkeypatch.context() as context:
        for depth in range(1, 4):
            name = ".".join(_MODULE.split(".")[:depth])
            context.setitem(sys.modules, name, ModuleType(name))
        sys.modules[_MODULE].HistoryBuffer = HistoryBuffer
        # Python 3.13 goes by the module of a method, earlier ones by that of its class.
        for named in (HistoryBuffer, HistoryBuffer.mean):
            context.setattr(named, "__module__", _MODULE)
        info = {"epoch": 0, "iter": 20000, "eta": np.float64(0.5), "last_ckpt": str(path)}
        content = {
            "meta": {
                "epoch": 0,
                "iter": 20000,
                "cfg": "model = dict()",
                "seed": 7,
                "mmengine_version": "0.10.7",
                "dataset_meta": {"classes": ("cat", "dog"), "palette": [[0, 0, 0], [1, 1, 1]]},
            },
            "state_dict": OrderedDict(state),
            "message_hub": {
                "log_scalars": OrderedDict({"train/loss": HistoryBuffer([0.5, 0.25])}),
                "runtime_info": OrderedDict(info),
                "resumed_keys": OrderedDict.fromkeys(info, True),
            },
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
            "param_schedulers": [{"eta_min": 0.0, "power": 0.9, "_last_value": [0.0]}],
            "ema_state_dict": {f"module.{name}": tensor + 1 for name, tensor in state.items()},
        }
        torch.save(content, path)
    return path
