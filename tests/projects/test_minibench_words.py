"""Words that are asked alone: shares against every pixel one by one, and their picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from helpers.tiny_run import own_loggers
from helpers.toy_dataset import forget, write_sample
from PIL import Image

from tagclip import (
    TagCLIPPredictor,
    Vocabulary,
    ZeroShotTrainer,
    load_config,
    register_zero_shot_sem_seg,
)
from tagclip.projects.minibench import VOCABULARY_JSON
from tagclip.projects.minibench.asked_alone import draw_words, measure_words_alone
from tagclip.projects.minibench.generate import scene

CONFIG = Path(__file__).resolve().parents[2] / "projects" / "MiniBench" / "configs"
DATASET, SPLIT = "minibench_words", "noun_dice_board"


@pytest.fixture
def predictor(tmp_path: Path) -> TagCLIPPredictor:
    for index in range(24):
        drawn = scene("train", index)
        write_sample(tmp_path, f"{index:06d}", drawn.image, drawn.label)
    folders = tmp_path / "images", tmp_path / "labels"
    register_zero_shot_sem_seg(DATASET, *folders, VOCABULARY_JSON, image_ext="png")
    relative, test = "MODEL.TAGCLIP.TRUSTY.RELATIVE.", "MODEL.TAGCLIP.TEST."
    opts = [
        *("DATASETS.TRAIN", f"('{DATASET}',)", "DATASETS.TEST", f"('{DATASET}',)"),
        *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 1),
        *(f"{relative}FIT_IMAGES", 16, f"{relative}SAMPLE_IMAGES", 4, "MODEL.DEVICE", "cpu"),
        *(f"{test}BACKGROUND", "auto", f"{test}BACKGROUND_MISS_RATE", 0.4),
        *("OUTPUT_DIR", tmp_path / "run"),
    ]
    cfg = load_config(CONFIG / f"tagclip_minibench_{SPLIT}_relative.yaml", list(map(str, opts)))
    with own_loggers():
        trainer = ZeroShotTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    yield TagCLIPPredictor.from_checkpoint(tmp_path / "run" / "model_final.pth")
    forget(DATASET)


def test_shares_and_picture_of_words_alone(predictor: TagCLIPPredictor) -> None:
    vocabulary = Vocabulary.from_json(VOCABULARY_JSON, SPLIT)
    samples = DatasetCatalog.get(DATASET)[:7]
    found = measure_words_alone(predictor, samples, vocabulary)
    truths = [np.array(Image.open(sample["sem_seg_file_name"])) for sample in samples]
    sides = {"seen": ([], []), "unseen": ([], [])}
    for entry, seen in zip(vocabulary.classes, vocabulary.seen_mask, strict=True):
        predictor.set_vocabulary([entry.name], seen=[bool(seen)])
        elsewhere, own = [], []
        for sample, truth in zip(samples, truths, strict=True):
            drawn = predictor(sample["file_name"])["sem_seg_labels"].numpy() == 0
            here = truth == entry.id
            own += drawn[here].tolist()
            elsewhere += [] if here.any() else drawn.ravel().tolist()
        for values, pixels in zip(
            sides["seen" if seen else "unseen"], (elsewhere, own), strict=True
        ):
            values += [100 * np.mean(pixels)] if pixels else []
    for side, (elsewhere, own) in sides.items():
        assert found[f"{side} words, drawn where absent"] == pytest.approx(np.mean(elsewhere))
        assert found[f"{side} words, own pixels drawn"] == pytest.approx(np.mean(own))
    assert all(np.isfinite(value) for value in found.values())
    unseen = np.flatnonzero(~vocabulary.seen_mask)
    ids = [vocabulary.classes[k].id for k in unseen]
    rows = sum(np.isin(truth, ids).any() for truth in truths)
    picture = draw_words(predictor, samples, vocabulary)
    assert 0 < rows < len(samples) and picture.shape[0] // 260 == rows
