"""Two thousand images through evaluator, predictor and a stream: memory stays flat."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import changed, own_loggers
from PIL import Image

from tagclip import TagCLIPPredictor, ZeroShotTrainer
from tagclip.data.read_ahead import read_ahead
from tagclip.errors import DatasetError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status"),
]

IMAGES, WARM_UP, EVERY = 2000, 200, 20
# One kept label map of 50 x 50 pixels of two bytes per image adds 9 MiB.
ALLOWED_MIB = 3.0


class Memory(DatasetEvaluator):
    """Resident memory after every twentieth image, without what the allocator merely holds."""

    def __init__(self) -> None:
        self.images, self.mib = 0, []
        self._trim = ctypes.CDLL("libc.so.6").malloc_trim

    def process(self, inputs: Any, outputs: Any) -> None:
        self.note()

    def note(self) -> None:
        self.images += 1
        if self.images % EVERY:
            return
        gc.collect()
        self._trim(0)
        status = Path("/proc/self/status").read_text()
        self.mib.append(int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024)

    def growth(self) -> float:
        """MiB that a straight line through all values after the warm-up gains to the end."""
        assert self.images == IMAGES
        after = np.array(self.mib[WARM_UP // EVERY - 1 :])
        return float(np.polyfit(np.arange(len(after)), after, 1)[0]) * (len(after) - 1)

    def check(self, what: str) -> None:
        first, last = self.mib[WARM_UP // EVERY - 1], self.mib[-1]
        print(
            f"\n{what}: {first:.1f} MiB after {WARM_UP} images, {last:.1f} after {IMAGES}; "
            f"a fitted line grows by {self.growth():.2f} MiB"
        )
        assert abs(self.growth()) < ALLOWED_MIB


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Collecting garbage looks at nothing that was there before the test."""
    gc.collect()
    gc.freeze()
    yield Memory()
    gc.unfreeze()


@pytest.fixture
def cfg(tiny_cfg: CfgNode, tmp_path: Path) -> CfgNode:
    """A tiny checkpoint, and images of some 800 different sizes for it."""
    generator = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind / "val").mkdir(parents=True)
    for index in range(IMAGES):
        size = generator.integers(33, 65, 2)
        label = generator.choice([0, 1, 2, 3, 4, 255], size).astype(np.uint8)
        image = generator.integers(0, 256, (*size, 3), np.uint8)
        for kind, array in (("images", image), ("labels", label)):
            Image.fromarray(array).save(tmp_path / kind / "val" / f"{index:04d}.png")
    path = save_tiny(tiny_cfg, tmp_path)
    return changed(
        tiny_cfg,
        "DATASETS.TRAIN", tiny_cfg.DATASETS.TEST,
        "MODEL.WEIGHTS", str(path),
        "INPUT.MIN_SIZE_TEST", 0,
    )  # fmt: skip


def test_evaluation_of_two_thousand_images(cfg: CfgNode, memory: Memory) -> None:
    (name,) = cfg.DATASETS.TEST
    with own_loggers():
        model = ZeroShotTrainer.build_model(cfg)
        loader = ZeroShotTrainer.build_test_loader(cfg, name)
        evaluator = ZeroShotTrainer.build_evaluator(cfg, name)
        results = inference_on_dataset(model, loader, DatasetEvaluators([evaluator, memory]))
    assert evaluator._images == IMAGES and 0 <= results["sem_seg"]["mIoU"] <= 100
    memory.check("evaluator")


def test_prediction_of_two_thousand_images(cfg: CfgNode, memory: Memory, tmp_path: Path) -> None:
    predictor = TagCLIPPredictor(cfg)
    words = [["cat", "dog"], ["cat", "dog", "grass", "sky", "sofa"]]
    for index, path in enumerate(sorted((tmp_path / "images" / "val").iterdir())):
        predictor.set_vocabulary(words[index % 2])
        assert predictor(path)["class_names"] == words[index % 2]
        memory.note()
    memory.check("predictor")


def test_a_stream_of_two_thousand_images(cfg: CfgNode, memory: Memory, tmp_path: Path) -> None:
    """Read ahead, every tenth one broken, bytes and files in turn."""
    predictor = TagCLIPPredictor(cfg)
    prepare = partial(predictor.preparer.attempt, name="image")

    def images() -> Iterator[Path | bytes]:
        for index, path in enumerate(sorted((tmp_path / "images" / "val").iterdir())):
            content = path.read_bytes()[: 60 if index % 10 == 0 else None]
            yield content if index % 2 == 0 else path

    prepared = read_ahead(images(), prepare, predictor.preparer.nbytes, budget=2**20)
    errors = 0
    for result in predictor.segment_prepared(prepared):
        errors += isinstance(result, DatasetError)
        memory.note()
    assert errors == IMAGES // 10
    memory.check("stream")


def test_what_is_kept_is_seen(memory: Memory) -> None:
    kept = []
    for _ in range(IMAGES):
        kept.append(np.ones((50, 50), np.int16))
        memory.note()
    assert memory.growth() > ALLOWED_MIB
