"""supervision and FiftyOne: without the packages one line says how to get them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.labelled_images import NAMES, label_maps, odd_vocabulary

from tagclip.data.formats.fiftyone_out import mask_targets, to_fiftyone
from tagclip.data.formats.labelled_image import class_masks, labels_and_scores
from tagclip.data.formats.supervision_out import to_supervision
from tagclip.errors import NotInstalledError


@pytest.mark.parametrize(
    ("function", "package"), [(to_supervision, "supervision"), (to_fiftyone, "fiftyone")]
)
def test_a_missing_package(
    function: Callable[..., Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(NotInstalledError) as error:
        function(label_maps()[0], odd_vocabulary())
    assert str(error.value) == (
        f"{function.__name__} needs {package}, which is not installed; run: pip install {package}"
    )


def test_values_of_fiftyone_begin_at_one() -> None:
    assert mask_targets(odd_vocabulary()) == dict(zip([1, 2, 3, 4], NAMES, strict=True))


def test_what_a_prediction_is() -> None:
    labels = label_maps()[1]
    found, scores = labels_and_scores(labels)
    assert (found == labels).all() and scores is None
    prediction = {
        "sem_seg_labels": torch.from_numpy(labels).short(),
        "sem_seg_scores": torch.full(labels.shape, 0.25).half(),
    }
    found, scores = labels_and_scores(prediction)
    assert (found == labels).all() and scores.dtype == np.float32 and (scores == 0.25).all()
    for k, mask in class_masks(found):
        assert mask.dtype == bool and (mask == (labels == k)).all()
