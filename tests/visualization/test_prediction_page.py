"""A predicted image: four panels of the size that is asked for, and all that they mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.pages import find
from helpers.pictures import picture

from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.panels import draw_trusty_bar, fit
from tagclip.visualization.prediction_page import draw_prediction
from tagclip.visualization.segments import colorize_labels, colorize_trusty, draw_segments

VOCABULARY = Vocabulary.from_names(["cat", "dog", "犬"], seen=["cat", "犬"])
GAP, MARGIN = 8, 10


def predicted(height: int, width: int) -> tuple[np.ndarray, dict[str, Any]]:
    """An image, and cat on its left half, dog on its right, "other" above both."""
    labels = np.zeros((height, width), np.int16)
    labels[:, width // 2 :] = 1
    labels[: height // 4] = -1
    rng = np.random.default_rng(0)
    maps = {key: rng.random((height, width), np.float32) for key in ("sem_seg_scores", "trusty")}
    maps = {key: torch.from_numpy(value) for key, value in maps.items()}
    return picture(height, width), {"sem_seg_labels": torch.from_numpy(labels), **maps}


@pytest.mark.parametrize(
    ("shape", "size", "shown"),
    [((360, 480), 512, (384, 512)), ((96, 96), 512, (512, 512)), ((360, 480), 200, (150, 200)),
     ((60, 40), 300, (300, 200)), ((37, 53), 512, (357, 512))],
)  # fmt: skip
def test_panels_have_the_size_that_is_asked_for(
    shape: tuple[int, int], size: int, shown: tuple[int, int]
) -> None:
    image, prediction = predicted(*shape)
    page = draw_prediction(image, prediction, VOCABULARY, size)
    height, width = shown
    assert page.shape[1] == max(4 * max(width, 190) + 3 * GAP + 2 * MARGIN, 800)
    labels = fit(prediction["sem_seg_labels"].numpy(), size)
    panels = [fit(image, size), draw_segments(fit(image, size), labels, VOCABULARY)]
    keys = ("sem_seg_scores", "trusty")
    panels += [colorize_trusty(fit(prediction[key].numpy(), size)) for key in keys]
    for i, panel in enumerate(panels):
        assert panel.shape == (height, width, 3)
        left = MARGIN + i * (max(width, 190) + GAP)
        assert (page[26 : 26 + height, left : left + width] == panel).all()
    # The scales below the maps, with the names of their ends; the legend below.
    bar = draw_trusty_bar(max(width, 190))
    assert (page[26 + height :][:38, left : left + bar.shape[1]] == bar).all()
    legend = page[64 + height :, :500]
    swatches = [*VOCABULARY.colors, colorize_labels(np.full((13, 21), -1), VOCABULARY)]
    found = [find(legend, np.zeros((13, 21, 3), np.uint8) + swatch) for swatch in swatches]
    assert [len(places) for places in found] == [1, 1, 0, 1]


def test_colours_fill_the_classes_up_to_outlines_on_their_borders() -> None:
    image, prediction = predicted(360, 480)
    page = draw_prediction(image, prediction, VOCABULARY, 512)
    panel, shown = page[26:410, 530:1042], fit(image, 512)
    for k, x in ((0, 60), (1, 450)):
        expected = 0.3 * shown[370, x] + 0.7 * VOCABULARY.colors[k]
        assert np.abs(panel[370, x] - expected).max() <= 0.5
    # The first row, or column, of a class beyond a border; none of the pixels beside it.
    assert (panel[96, :200] == 0).all() and (panel[97:, 256] == 0).all()
    assert panel[[95, 97], 20].any(axis=1).all() and panel[370, [255, 257]].any(axis=1).all()


def test_names_are_white_on_a_shade() -> None:
    image, prediction = predicted(360, 480)
    prediction["sem_seg_labels"][:] = 1
    panel = draw_prediction(image, prediction, VOCABULARY, 512)[26:410, 530:1042]
    labels = np.ones((384, 512), np.int16)
    bare = draw_segments(fit(image, 512), labels, VOCABULARY, names=False)
    places = np.argwhere((panel != bare).any(axis=2))
    (top, left), (bottom, right) = places.min(axis=0), places.max(axis=0)
    assert abs(top + bottom - 384) <= 4 and abs(left + right - 512) <= 4
    box, behind = (part[top : bottom + 1, left : right + 1] for part in (panel, bare))
    assert (box > 250).all(axis=2).sum() > 10 and (box >= behind // 5).all()
    # Room on each side.
    for side in (np.s_[:2], np.s_[-2:], np.s_[:, :2], np.s_[:, -2:]):
        assert (box[side] == behind[side] // 5).all()


def test_wide_images_have_their_panels_below_each_other() -> None:
    image, prediction = predicted(40, 300)
    page = draw_prediction(image, prediction, VOCABULARY, 300)
    places = [find(page, fit(image, 300)), find(page, colorize_trusty(prediction["trusty"]))]
    assert places[0][0][1] == places[1][0][1] and places[0][0][0] < places[1][0][0]


def test_with_a_given_legend_pages_of_one_size_are_equal_in_size() -> None:
    shapes = set()
    for value in (0, 1, -1):
        image, prediction = predicted(50, 60)
        prediction["sem_seg_labels"][:] = value
        shapes.add(draw_prediction(image, prediction, VOCABULARY, 256, [0, 1, 2, -1]).shape)
    assert len(shapes) == 1
