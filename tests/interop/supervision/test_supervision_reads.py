"""supervision: what `to_supervision` returns, and our COCO json in its own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import supervision
import torch
from helpers.labelled_images import NAMES, label_maps, labelled_images, odd_vocabulary

from tagclip.data.formats.supervision_out import to_supervision
from tagclip.evaluation.coco_json import write_coco


@pytest.mark.parametrize("labels", label_maps())
def test_detections_say_what_was_predicted(labels: np.ndarray) -> None:
    scores = np.random.default_rng(1).random(labels.shape).astype(np.float16)
    prediction = {
        "sem_seg_labels": torch.from_numpy(labels).short(),
        "sem_seg_scores": torch.from_numpy(scores),
    }
    found = to_supervision(prediction, odd_vocabulary())
    assert found.class_id.tolist() == sorted(set(labels[labels >= 0].tolist()))
    assert list(found["class_name"]) == [NAMES[k] for k in found.class_id]
    painted = np.full_like(labels, -1)
    for box, mask, confidence, k, _, _ in found:
        painted[mask] = k
        ys, xs = np.nonzero(labels == k)
        assert box.tolist() == [xs.min(), ys.min(), xs.max(), ys.max()]
        assert confidence == pytest.approx(scores[labels == k].astype(float).mean(), rel=1e-5)
    assert (painted == labels).all()
    assert (found.area == [(labels == k).sum() for k in found.class_id]).all()


def test_detections_are_drawn_and_filtered() -> None:
    labels = label_maps()[0]
    found = to_supervision(labels, odd_vocabulary())
    assert found.confidence is None
    kept = found[found.class_id == 1]
    color = supervision.ColorPalette.from_hex(["#ff0000"])
    annotator = supervision.MaskAnnotator(color=color, opacity=1)
    drawn = annotator.annotate(np.zeros((*labels.shape, 3), np.uint8), kept)
    assert (drawn.any(axis=2) == (labels == 1)).all()


def test_its_reader_of_coco(tmp_path: Path) -> None:
    images = labelled_images(tmp_path / "images")
    write_coco(tmp_path, images, odd_vocabulary())
    dataset = supervision.DetectionDataset.from_coco(
        str(tmp_path / "images"), str(tmp_path / "annotations.json"), force_masks=True
    )
    expected = {str(image.path): image.labels for image in images}
    assert len(dataset) == len(expected)
    # Its classes are in the order of their ids.
    order = [dataset.classes.index(name) for name in NAMES]
    for path, _, found in dataset:
        labels = expected[path]
        assert len(found) == len(set(labels[labels >= 0].tolist()))
        for mask, k in zip(found.mask if len(found) else (), found.class_id, strict=True):
            assert (mask == (labels == order.index(k))).all()
