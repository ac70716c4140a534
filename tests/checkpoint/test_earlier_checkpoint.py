"""A checkpoint of earlier code means today what it meant then (`earlier/README.md`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers.tiny_checkpoint import checkpointer
from helpers.tiny_run import run_arguments
from helpers.toy_dataset import forget
from PIL import Image

from tagclip import TagCLIPPredictor, ZeroShotTrainer
from tagclip.checkpoint import checkpoint_config, read_checkpoint

EARLIER = Path(__file__).with_name("earlier")
SIZE, IMAGES = (70, 90), 3


def picture(index: int) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) RGB and (H, W) labels, the same on every machine."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    image = np.stack([x * 3 + index * 40, y * 5, x * y // 8 + index], axis=-1) % 256
    return image.astype(np.uint8), ((x // 20 + y // 25 + index) % 5).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The run's folder, with images and labels."""
    folder = Path(shutil.copytree(EARLIER, tmp_path / "run"))
    for subset in ("train", "val"):
        for index in range(IMAGES):
            for kind, array in zip(("images", "labels"), picture(index), strict=True):
                path = folder / kind / subset / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    yield folder
    forget("earlier_train", "earlier_val")


def test_the_predictor_answers_as_then(folder: Path) -> None:
    """Rounding may differ on other machines."""
    predictor = TagCLIPPredictor.from_checkpoint(folder / "model_final.pth")
    assert predictor.vocabulary.names == ["cat", "dog", "grass", "sky", "sofa"]
    with np.load(folder / "predictions.npz", allow_pickle=False) as expected:
        for index in range(IMAGES):
            found = predictor(folder / "images" / "val" / f"{index}.png")
            labels = found["sem_seg_labels"].numpy()
            assert labels.shape == SIZE
            assert (labels != expected["labels"][index]).mean() < 1e-3
            for ours, theirs in (("sem_seg_scores", "scores"), ("trusty", "trusty")):
                values = found[ours][::8, ::8].float().numpy()
                np.testing.assert_allclose(values, expected[theirs][index], atol=1e-3)


def test_its_metadata_are_those_of_today(folder: Path) -> None:
    """Without the config, which has more keys today."""
    path = folder / "model_final.pth"
    cfg = checkpoint_config(path)
    then = read_checkpoint(path)["tagclip"]
    now = checkpointer(cfg, ZeroShotTrainer.build_model(cfg), folder).metadata
    assert then.pop("config") and {key: now[key] for key in then} == then


def test_an_evaluation_counts_as_then(folder: Path, train_net: ModuleType, tmp_path: Path) -> None:
    path, output = tmp_path / "config.yaml", tmp_path / "output"
    path.write_text(checkpoint_config(folder / "model_final.pth").dump())
    train_net.main(run_arguments(path, "OUTPUT_DIR", output, eval_only=True))
    found = json.loads((output / "inference" / "earlier_val" / "metrics.json").read_text())
    expected = json.loads((folder / "metrics.json").read_text())
    difference = np.abs(np.array(found["confusion"]) - np.array(expected["confusion"]))
    assert difference.sum() < 1e-3 * np.sum(expected["confusion"])
    # Measures that have come since are not in it.
    metrics = {name: found["metrics"][name] for name in expected["metrics"]}
    assert metrics == pytest.approx(expected["metrics"], abs=0.1)
    for key in ("vocabulary_fingerprint", "split", "images", "left_out", "classes_without_pixels"):
        assert found[key] == expected[key]
    # Nobody wrote down then what the run started from.
    assert found["run"]["protocol"] == expected["run"]["protocol"] + "; ancestry unknown"
    for key in ("clip_sha256", "training_vocabulary", "trusty_kind", "seen_bias"):
        assert found["run"][key] == expected["run"][key]
