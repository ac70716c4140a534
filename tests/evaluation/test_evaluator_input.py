"""What the evaluator refuses to count."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.toy_dataset import forget, write_sample
from helpers.toy_evaluation import IGNORE, NAMES, SIZES, Toy

from tagclip import Vocabulary
from tagclip.errors import CheckpointError, ConfigError, DatasetError, VocabularyError


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    name = f"evaluator_{uuid.uuid4().hex}"
    yield Toy(tmp_path, name)
    forget(name)


def test_no_labelled_pixel_is_an_error(toy: Toy, tmp_path: Path) -> None:
    evaluator = toy.evaluator(output_dir=str(tmp_path / "out"))
    for i, size in enumerate(SIZES):
        write_sample(
            tmp_path, str(i), np.zeros((*size, 3), np.uint8), np.full(size, IGNORE, np.uint8)
        )
    toy.run(evaluator, 0, 1, 2)
    with pytest.raises(DatasetError, match="found 0 valid pixels in 3 images"):
        evaluator.evaluate()
    assert not (tmp_path / "out").exists()


def test_a_label_of_another_size_is_refused_even_with_as_many_pixels(toy: Toy) -> None:
    output = {"sem_seg_labels": torch.zeros(7, 9, dtype=torch.int16)}
    with pytest.raises(DatasetError, match=r"0\.png: label is 7x9 .* its image is 9x7; width"):
        toy.evaluator().process([toy.input(0)], [output])


def test_a_label_out_of_range_is_refused(toy: Toy, tmp_path: Path) -> None:
    toy.labels[0][2, 3] = 30
    write_sample(tmp_path, "0", np.zeros((9, 7, 3), np.uint8), toy.labels[0])
    with pytest.raises(DatasetError, match=r"0\.png: label 30 at \(3,2\), vocabulary toy has"):
        toy.run(toy.evaluator(), 0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sem_seg_labels": torch.full((9, 7), 5)}, ValueError, "classes 5 to 5, expected 0 to 4"),
        ({"sem_seg_labels": torch.full((9, 7), -2)}, ValueError, "classes -2 to -2"),
        ({"sem_seg_labels": torch.ones(9, 7)}, ValueError, "predictions of float32"),
        ({"sem_seg_scores": torch.full((9, 7), math.nan)}, CheckpointError, "nan in the score"),
        ({"trusty": torch.full((9, 7), math.nan)}, CheckpointError, "nan in the trusty map"),
        ({"trusty": torch.ones(1, 9, 7)}, ValueError, r"trusty map of \(1, 9, 7\)"),
    ],
)
def test_a_broken_output_is_refused(
    toy: Toy, change: dict[str, torch.Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=rf"images/0\.png: .*{message}"):
        toy.evaluator().process([toy.input(0)], [toy.output(0) | change])


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        (torch.ones(6, 9, 7), ValueError, "scores of 6 classes, expected 5"),
        (torch.ones(5, 9, 7).index_fill(0, torch.tensor([2]), math.nan), CheckpointError, "nan"),
    ],
)
def test_broken_scores_are_refused(
    toy: Toy, scores: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        toy.evaluator().process([toy.input(0)], [{"sem_seg": scores}])


def test_an_answer_over_another_class_list_is_refused(toy: Toy) -> None:
    asked = Vocabulary.from_names([*NAMES[:3], "sofa", "sky"])
    with pytest.raises(VocabularyError, match=r"asked for vocabulary custom \(5 classes\)"):
        toy.evaluator().process([toy.input(0, vocabulary=asked)], [toy.output(0)])


def test_an_image_of_another_dataset_is_refused(toy: Toy) -> None:
    with pytest.raises(DatasetError, match=r"elsewhere\.png: not an image of dataset"):
        toy.evaluator().process([{"file_name": "elsewhere.png"}], [toy.output(0)])


def test_a_folder_that_cannot_be_written_is_one_line(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    evaluator = toy.run(toy.evaluator(output_dir=str(tmp_path / "out")), 0)
    with pytest.raises(ConfigError, match=r"metrics\.json: cannot be written .*OUTPUT_DIR"):
        evaluator.evaluate()
    evaluator = toy.run(toy.evaluator(results_table=tmp_path / "out" / "results.csv"), 0)
    with pytest.raises(ConfigError, match=r"results\.csv: cannot be written .*OUTPUT_DIR"):
        evaluator.evaluate()
