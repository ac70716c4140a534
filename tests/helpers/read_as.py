"""What the library reads, against other readings: label files by value, names by open_clip."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from detectron2.data import DatasetCatalog
from helpers.bench import Bench
from helpers.pictures import picture
from helpers.tiny_run import CLASSES, VOID
from open_clip.model import CLIP

from tagclip import (
    TagCLIPPredictor,
    Vocabulary,
    ZeroShotDatasetMapper,
    ZeroShotSemSegEvaluator,
)


def assert_read_as(folder: Path, name: str, truth: Sequence[np.ndarray]) -> None:
    """The mapper and the evaluator read a dataset's label files as these.

    Args:
        folder: where to write.
        name: registered, with five classes.
        truth: (H, W) indices of the classes, `VOID` on ignored pixels; one per image.
    """
    vocabulary = Vocabulary.from_metadata(name)
    mapper = ZeroShotDatasetMapper(
        is_train=True,
        augmentations=[],
        image_format="RGB",
        source_vocabulary=vocabulary,
        target_vocabulary=vocabulary.with_seen([True] * CLASSES),
        novel_masks=False,
        max_pixels=0,
    )
    evaluator = ZeroShotSemSegEvaluator(
        name, vocabulary=vocabulary, distributed=False, output_dir=str(folder / name)
    )
    expected = np.zeros((CLASSES, CLASSES), int)
    for sample, label in zip(DatasetCatalog.get(name), truth, strict=True):
        assert (mapper(sample)["sem_seg"].numpy() == label).all()
        answer = np.arange(label.size).reshape(label.shape) % CLASSES
        evaluator.process([sample], [{"sem_seg_labels": torch.from_numpy(answer)}])
        np.add.at(expected, (label[label != VOID], answer[label != VOID]), 1)
    evaluator.evaluate()
    found = json.loads((folder / name / "metrics.json").read_text())["confusion"]
    assert found == expected.tolist() and expected.sum()


def clip_vectors(predictor: TagCLIPPredictor, names: list[str]) -> torch.Tensor:
    """(K, D) unit vectors of "a photo of a NAME", by open_clip itself."""
    source = predictor.model.text_bank.source
    config = {k: source.config[k] for k in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}
    clip = CLIP(**config).eval()
    clip.load_state_dict(source.state_dict(), strict=False)
    texts = ["a photo of a " + name for name in names]
    with torch.no_grad():
        return clip.encode_text(open_clip.tokenize(texts), normalize=True)


def assert_read_literally(bench: Bench, names: list[str]) -> None:
    """Names stay as they are, and their vectors are those of open_clip."""
    predictor = bench.predictor()
    predictor.set_vocabulary(names)
    assert predictor(picture())["class_names"] == names
    found = predictor.model.text_bank(predictor.vocabulary)
    assert (found - clip_vectors(predictor, names)).abs().max() < 1e-5
