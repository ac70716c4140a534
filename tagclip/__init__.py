"""TagCLIP for Detectron2: zero-shot semantic segmentation with a trusty token.

Importing this package registers the meta-architecture, the backbone and the head in detectron2.
"""

import importlib.util as _importlib_util
import warnings as _warnings


def _require(module: str, command: str) -> None:
    if _importlib_util.find_spec(module) is None:
        raise ImportError(f"tagclip needs {module}, which is not installed; run: {command}")


# Neither can be a plain requirement: detectron2 is not on PyPI under its name, and two
# distributions provide cv2.
_require("detectron2", "python tools/install_detectron2.py")
_require("cv2", "pip install opencv-python-headless")

with _warnings.catch_warnings():
    # detectron2 0.6 scripts two functions when it is imported, which no user can mend.
    _warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
    import detectron2.modeling as _modeling  # noqa: F401

from tagclip.checkpoint import TagCLIPCheckpointer  # noqa: E402
from tagclip.config import add_tagclip_config  # noqa: E402
from tagclip.config.loading import load_config  # noqa: E402
from tagclip.data import ZeroShotDatasetMapper  # noqa: E402
from tagclip.data.datasets import builtin as _builtin  # noqa: E402, F401 (registers the benchmarks)
from tagclip.data.datasets.register import (  # noqa: E402
    register_folder_dataset,
    register_zero_shot_sem_seg,
)
from tagclip.engine import ZeroShotTrainer  # noqa: E402
from tagclip.errors import TagCLIPError  # noqa: E402
from tagclip.evaluation import ZeroShotSemSegEvaluator  # noqa: E402
from tagclip.modeling import CLIPViT, TagCLIP, TagCLIPHead, TextBank  # noqa: E402
from tagclip.predictor import TagCLIPPredictor  # noqa: E402
from tagclip.structures.vocabulary import Vocabulary  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "CLIPViT",
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
    "register_folder_dataset",
    "register_zero_shot_sem_seg",
]
