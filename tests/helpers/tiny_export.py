"""A tiny model to export, and what it computes itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.clip_files import random_clip
from helpers.tiny_checkpoint import build, checkpointer
from helpers.tiny_run import changed, load_tool
from safetensors.torch import save_file

from tagclip import TagCLIPPredictor

TOLERANCE = 1e-4
# The tiny model's patches have 16 pixels and its table 4 x 4 of them.
SQUARE, WIDE, ODD, THIN = (64, 64), (48, 80), (50, 71), (9, 40)
WORDS = "dog, cat, traffic light"


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    return load_tool(repository / "tools" / "export_model.py")


@pytest.fixture(scope="module")
def example(repository: Path) -> ModuleType:
    pytest.importorskip("onnxruntime")
    return load_tool(repository / "tools" / "run_onnx.py")


@pytest.fixture(scope="module")
def clip_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_file(random_clip().state_dict(), path)
    return str(path)


@pytest.fixture
def checkpoint(tiny_cfg: CfgNode, clip_weights: str) -> Path:
    return save_run(changed(tiny_cfg, "MODEL.CLIP.PRETRAINED", clip_weights))


def save_run(cfg: CfgNode) -> Path:
    """Save random weights that tell patches and classes apart, where the config's paths lead."""
    cfg, model = build(cfg, seed=1)
    last = model.eval().sem_seg_head.decoder.logits
    with torch.no_grad():
        patches = model.backbone(torch.from_numpy(noise(8, SQUARE)) / 50 - 2.5)["clip_dense"]
        last.key.bias.copy_(-last.key.weight @ patches.mean((0, 2, 3)))
        last.query.weight *= 50
    folder = Path(cfg.OUTPUT_DIR)
    checkpointer(cfg, model, folder).save("model_final")
    return folder / "model_final.pth"


def load(checkpoint: Path, *opts: object) -> TagCLIPPredictor:
    """A predictor that takes an image for one window."""
    opts = [*opts, "MODEL.TAGCLIP.TEST.MODE", "whole"]
    predictor = TagCLIPPredictor.from_checkpoint(checkpoint, opts)
    predictor.set_vocabulary(WORDS.split(", "), seen=["cat", "traffic light"])
    return predictor


def noise(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, *size), np.uint8)


def eager(predictor: TagCLIPPredictor, images: np.ndarray) -> list[np.ndarray]:
    """Scores, labels and trusty map of windows, by the inference of a `load`ed model."""
    model, outputs = predictor.model, []
    for image in torch.from_numpy(images):
        fusion, size = model.encode({"image": image}, predictor.vocabulary), tuple(image.shape[1:])
        labels = fusion.labels(size, model.inference_settings.background_threshold)
        maps = [fusion.scores(size)["sem_seg"], labels["sem_seg_labels"]]
        outputs.append(maps if model.trusty_target is None else [*maps, fusion.trusty(size)])
    return [torch.stack(maps).numpy() for maps in zip(*outputs, strict=True)]


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert [x.shape for x in found] == [x.shape for x in expected]
    assert [x.dtype for x in found] == [np.float32, np.int32, np.float32][: len(found)]
    for index in (0, 2)[: len(found) - 1]:
        np.testing.assert_allclose(found[index], expected[index], atol=TOLERANCE)
    # Classes that score alike may change places; here at most a pixel or two do.
    assert (found[1] != expected[1]).mean() < 1e-3


# Of what requirements.txt and the extras bring, the example takes numpy, Pillow and onnxruntime.
ABSENT = (
    "torch", "torchvision", "detectron2", "cv2", "open_clip", "ftfy", "regex", "timm", "onnx",
    "onnxscript", "safetensors", "yaml", "tabulate", "matplotlib", "jinja2", "tqdm", "fvcore",
    "iopath", "yacs", "omegaconf", "hydra", "cloudpickle", "termcolor", "pycocotools", "scipy",
)  # fmt: skip


def run_without_torch(*args: object, absent: Sequence[str] = ABSENT) -> str:
    """Run `tagclip run-onnx` in a process of its own in which little is installed."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}));"
        f"sys.argv = {['tagclip', 'run-onnx', *map(str, args)]!r};"
        "from tagclip.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not ended.returncode and not ended.stderr, ended.stderr
    return ended.stdout
