"""TagCLIP for Detectron2: zero-shot semantic segmentation with a trusty token.

Importing this package loads nothing heavy. The first use of a public name registers TagCLIP in
detectron2; `register` does so without one.
"""

from __future__ import annotations

import importlib
import threading
import warnings
from typing import TYPE_CHECKING, Any

# Lets a source checkout find tagclip.tools.
from tagclip import projects  # noqa: F401

if TYPE_CHECKING:
    from tagclip.checkpoint import TagCLIPCheckpointer
    from tagclip.config import add_tagclip_config, load_config
    from tagclip.data import (
        ZeroShotDatasetMapper,
        register_folder_dataset,
        register_zero_shot_sem_seg,
    )
    from tagclip.engine import ZeroShotTrainer
    from tagclip.errors import TagCLIPError
    from tagclip.evaluation import ZeroShotSemSegEvaluator
    from tagclip.modeling import CLIPViT, TagCLIP, TagCLIPHead, TextBank
    from tagclip.prediction import Prediction
    from tagclip.predictor import TagCLIPPredictor
    from tagclip.structures import Vocabulary

__version__ = "0.1.0"

__all__ = [
    "CLIPViT",
    "Prediction",
    "TagCLIP",
    "TagCLIPCheckpointer",
    "TagCLIPError",
    "TagCLIPHead",
    "TagCLIPPredictor",
    "TextBank",
    "Vocabulary",
    "ZeroShotDatasetMapper",
    "ZeroShotSemSegEvaluator",
    "ZeroShotTrainer",
    "add_tagclip_config",
    "load_config",
    "register",
    "register_folder_dataset",
    "register_zero_shot_sem_seg",
]

# Public name -> where it is defined.
_MODULES = {
    "CLIPViT": "modeling",
    "Prediction": "prediction",
    "TagCLIP": "modeling",
    "TagCLIPCheckpointer": "checkpoint",
    "TagCLIPError": "errors",
    "TagCLIPHead": "modeling",
    "TagCLIPPredictor": "predictor",
    "TextBank": "modeling",
    "Vocabulary": "structures",
    "ZeroShotDatasetMapper": "data",
    "ZeroShotSemSegEvaluator": "evaluation",
    "ZeroShotTrainer": "engine",
    "add_tagclip_config": "config",
    "load_config": "config",
    "register_folder_dataset": "data",
    "register_zero_shot_sem_seg": "data",
}

_registering = threading.RLock()
_is_registered = False


def register() -> None:
    """Register meta-architecture, backbone, head and the built-in datasets in detectron2.

    Every public name of this package and every config calls this; another call does nothing. The
    datasets are looked for below ``$DETECTRON2_DATASETS``, and nothing is read from there.

    Raises:
        NotInstalledError: detectron2 or cv2 is missing.
        DatasetError: the name of a built-in dataset belongs to another one.
    """
    global _is_registered
    if _is_registered:
        return
    from tagclip.utils.deferred import deferred
    from tagclip.utils.installed import check_installed

    check_installed()
    with _registering:
        if _is_registered:
            return
        # torchvision loads torch's compiler for this question of its box pooling, a fourth of the
        # time to a first mask.
        with warnings.catch_warnings(), deferred("torch._dynamo.utils", "is_compile_supported"):
            # detectron2 0.6 scripts two functions when it is imported, which no user can mend.
            warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
            importlib.import_module("detectron2.modeling")
        importlib.import_module("tagclip.modeling")
        importlib.import_module("tagclip.data.datasets.builtin").register_benchmarks()
        _is_registered = True


def __getattr__(name: str) -> Any:
    if name == "model_zoo":
        return importlib.import_module("tagclip.model_zoo")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
