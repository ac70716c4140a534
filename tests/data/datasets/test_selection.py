"""Masks that nothing can be learnt from are refused before a training."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagclip.data.datasets.selection import refuse_masks, refuse_moved_words
from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import ClassEntry, Vocabulary
from tagclip.visualization.panels import save_png

TWO = Vocabulary.from_names(["sand", "ball"])


def _samples(folder: Path, *labels: list[int]) -> list[dict[str, str]]:
    samples = []
    for index, values in enumerate(labels):
        path = folder / f"{index}.png"
        Image.fromarray(np.array([values], np.uint8)).save(path)
        samples.append({"sem_seg_file_name": str(path)})
    return samples


def test_masks_of_0_and_255_are_refused_with_a_remedy(tmp_path: Path) -> None:
    samples = _samples(tmp_path, [0, 0], [0, 255], [0, 255])
    expected = re.escape("0 and 255 alone; 255 looks like the foreground of a 0/255 mask")
    with pytest.raises(DatasetError, match=expected):
        refuse_masks(samples, TWO)
    # What it asks for.
    classes = (ClassEntry(0, "sand"), ClassEntry(1, "ball", ids=(1, 255)))
    refuse_masks(samples, Vocabulary("v", classes, ignore_label=254))


@pytest.mark.parametrize("last", [[0, 1], [1, 255], [2, 0]])
def test_other_masks_are_not(last: list[int], tmp_path: Path) -> None:
    refuse_masks(_samples(tmp_path, [0, 0], [0, 255], last), TWO)


def test_only_as_much_is_read_as_needed(tmp_path: Path) -> None:
    samples = _samples(tmp_path, [0, 0], [0, 1])
    samples += [{"sem_seg_file_name": str(tmp_path / "missing.png")}]
    refuse_masks(samples, TWO)
    refuse_masks(samples[::-1], Vocabulary.from_names(["a", "b", "c"]))
    refuse_masks([{"file_name": "a.png"}], TWO)


def _noted(folder: Path, *words: dict[int, str] | None) -> list[dict[str, str]]:
    """Labels that say this of their values."""
    samples = _samples(folder, *([0, 1] for _ in words))
    for sample, said in zip(samples, words, strict=True):
        path = sample["sem_seg_file_name"]
        save_png(path, Image.open(path), words=said)
    return samples


def test_labels_that_were_made_with_other_ids_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = _noted(tmp_path, None, {1: "Ball"}, {0: "ball"}, {0: "sand", 1: "ball"})
    expected = re.escape("2.png: found a label file that was made with other words or ids, 0 = 'ba")
    with pytest.raises(DatasetError, match=expected):
        refuse_moved_words(moved, TWO)
    refuse_moved_words([*moved[:2], moved[3], {"file_name": "a.png"}], TWO)
    # Their palette says what they are.
    classes = (ClassEntry(0, "sand", color=(1, 2, 3)), ClassEntry(1, "ball", color=(3, 2, 1)))
    refuse_moved_words(moved, Vocabulary("v", classes, labels="colors"))
    assert not caplog.records


def test_labels_of_other_words_are_taken_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_moved_words(_noted(tmp_path, {0: "beach"}, {0: "beach", 1: "ball"}, {1: "globe"}), TWO)
    (record,) = caplog.records
    assert "0.png: found a label file that was made with other words" in record.getMessage()
    assert "0 = 'beach' ('sand' here); they are taken as the same" in record.getMessage()
