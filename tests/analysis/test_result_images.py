"""Galleries: where there is no truth, a prediction is hatched; the legend lists what can occur."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.pages import find

from tagclip.analysis.result_images import Predicted, draw_gallery
from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.segments import colorize_labels, draw_segments

VOCABULARY = Vocabulary.from_names(["cat", "dog"], seen=[True, True])
HATCH = colorize_labels(np.full((13, 21), -1), VOCABULARY)


def predicted(unlabelled: bool, other: bool) -> Predicted:
    truth, labels = np.zeros((2, 48, 64), dtype=np.int32)
    labels[:, 40:] = 1
    if unlabelled:
        truth[:24] = VOCABULARY.ignore_index
    if other:
        labels[30:] = -1
    return Predicted("image", np.zeros((48, 64, 3), np.uint8), truth, labels, None, (truth * 0,))


@pytest.mark.parametrize("unlabelled", [True, False])
@pytest.mark.parametrize("other", [True, False])
def test_predictions_without_truth_are_hatched(unlabelled: bool, other: bool) -> None:
    image = predicted(unlabelled, other)
    page = draw_gallery([image], VOCABULARY, size=64, titles=("own", "plain"))
    hatched = np.zeros((48, 64), dtype=bool)
    hatched[:24] = unlabelled
    for labels in (image.labels, image.others[0]):
        panel = draw_segments(image.image, labels, VOCABULARY, 1.0, hatched=hatched)
        (top, _), *_ = find(page, panel)
        bare = draw_segments(image.image, labels, VOCABULARY, 1.0)
        assert (bare == panel).all() == (not unlabelled)
    assert bool(find(page[top + 48 :], HATCH)) == (unlabelled or other), (
        "in the legend if it occurs"
    )
