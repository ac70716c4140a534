"""What the demo keeps of an image or a frame, and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tagclip.demo.results import ResultKeeper
from tagclip.errors import ConfigError
from tagclip.structures.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_names(["cat", "dog"], seen=[True, False])
PREDICTION = {
    "sem_seg_labels": torch.tensor([[0, 1, 1], [1, -1, 1]]),
    "sem_seg_scores": torch.full((2, 3), 0.5),
}


@pytest.mark.parametrize("has_json", [False, True])
@pytest.mark.parametrize("has_labels", [False, True])
def test_only_what_is_asked_for_is_kept(tmp_path: Path, has_json: bool, has_labels: bool) -> None:
    path = tmp_path / "a.png"
    entry = ResultKeeper(VOCABULARY, has_json)(PREDICTION, path if has_labels else None)
    assert path.is_file() == has_labels
    if has_labels:
        assert np.array(Image.open(path)).tolist() == [[0, 1, 1], [1, 255, 1]]
    assert bool(entry) == has_json
    assert entry.get("labels") == (str(path) if has_json and has_labels else None)
    if has_json:
        assert [row["area"] for row in entry["annotations"]] == [1, 4]
        assert entry["other"] == pytest.approx(1 / 6, abs=1e-6)


@pytest.mark.parametrize(("note", "end"), [("", "again"), ("v1", "again: finished pictures stay")])
def test_labels_that_cannot_be_written(tmp_path: Path, note: str, end: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "a.png"
    with pytest.raises(ConfigError) as error:
        ResultKeeper(VOCABULARY, True)(PREDICTION, path, note)
    assert str(error.value) == (
        f"--output {path}: cannot be written (Not a directory); free space or choose another "
        f"folder, then start {end}"
    )
