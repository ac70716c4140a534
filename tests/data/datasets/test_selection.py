"""Masks that nothing can be learnt from are refused before a training."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagclip.data.datasets.selection import refuse_masks
from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import ClassEntry, Vocabulary

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
