"""Label maps as label files: whoever reads ids or colours finds the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tagclip.data import read_indices
from tagclip.data.label_image import label_image
from tagclip.structures.vocabulary import ClassEntry, Vocabulary

WHITE, BLACK, RED, GRAY = (255,) * 3, (0,) * 3, (255, 0, 0), (128,) * 3
LABELS = np.array([[0, 1, -1], [1, -1, 0]])


def vocabulary(
    colors: tuple, ignore_colors: tuple = (), labels: str = "", ignored: int = 255
) -> Vocabulary:
    entries = tuple(ClassEntry(3 * k + 1, f"class {k}", color=c) for k, c in enumerate(colors))
    return Vocabulary(
        "toy", entries, ignore_label=ignored, ignore_colors=ignore_colors, labels=labels
    )


@pytest.mark.parametrize(
    ("asked", "color"),
    [
        (vocabulary((RED, None)), WHITE),
        (vocabulary((RED, WHITE)), BLACK),
        (vocabulary((BLACK, WHITE), ignored=0), GRAY),
        (vocabulary((BLACK, WHITE, GRAY)), (1, 1, 1)),
        (vocabulary((BLACK, RED), ((0, 0, 9), WHITE), "colors"), (0, 0, 9)),
        (vocabulary((WHITE, RED), (BLACK,), "ids"), BLACK),
    ],
)
def test_no_colour_is_that_of_another_class(
    tmp_path: Path, asked: Vocabulary, color: tuple[int, int, int]
) -> None:
    picture = label_image(LABELS, asked)
    rgb = np.array(picture.convert("RGB"))
    assert (rgb[LABELS < 0] == color).all()
    assert (rgb[LABELS >= 0] == asked.colors[LABELS[LABELS >= 0]]).all()
    assert (np.array(picture) == np.array([1, 4, asked.ignore_label])[LABELS]).all()
    picture.save(tmp_path / "a.png")
    found = read_indices(tmp_path / "a.png", asked, LABELS.shape)
    assert (found == np.where(LABELS < 0, asked.ignore_index, LABELS)).all()


@pytest.mark.parametrize("count", [1, 255])
def test_as_many_classes_as_bytes_can_tell(count: int) -> None:
    asked = Vocabulary.from_names([f"class {k}" for k in range(count)])
    labels = np.arange(-1, count)[None]
    picture = label_image(labels, asked)
    assert picture.mode == "P"
    assert (np.array(picture) == labels.astype(np.uint8)).all()


def test_ids_above_255_make_all_files_16_bit() -> None:
    asked = Vocabulary("toy", (ClassEntry(0, "a"), ClassEntry(300, "b")))
    assert label_image(np.array([[0, 0]]), asked).mode == "I;16"
