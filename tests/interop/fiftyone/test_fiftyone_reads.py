"""FiftyOne: masks of samples, with its database where that starts."""

from __future__ import annotations

from pathlib import Path

import fiftyone
import numpy as np
import pytest
from helpers.documented_bulk import LABELS, WORDS, run_example, write_documented_run
from helpers.labelled_images import NAMES, label_maps, labelled_images, odd_vocabulary

from tagclip.data.formats.fiftyone_out import mask_targets, to_fiftyone


@pytest.mark.parametrize("labels", label_maps())
def test_segmentations(labels: np.ndarray) -> None:
    found = to_fiftyone(labels, odd_vocabulary())
    assert found.has_mask and found.get_mask().dtype == np.uint8
    stored = fiftyone.Segmentation.from_dict(found.to_dict()).get_mask()
    assert (stored.astype(int) - 1 == labels).all()


def test_written_masks(tmp_path: Path) -> None:
    for image in labelled_images(tmp_path):
        found = to_fiftyone(image.labels, odd_vocabulary())
        found.export_mask(str(tmp_path / "mask.png"), update=True)
        assert (found.get_mask().astype(int) - 1 == image.labels).all()


def test_a_dataset(tmp_path: Path) -> None:
    try:
        dataset = fiftyone.Dataset()
    except Exception as error:
        pytest.skip(f"its database does not start: {' '.join(str(error).split())[:100]}")
    try:
        dataset.default_mask_targets = mask_targets(odd_vocabulary())
        images = labelled_images(tmp_path)
        for image in images:
            sample = fiftyone.Sample(filepath=str(image.path))
            sample["prediction"] = to_fiftyone(image.labels, odd_vocabulary())
            sample["truth"] = to_fiftyone(image.labels, odd_vocabulary())
            dataset.add_sample(sample)
        dataset.reload()
        assert list(dataset.default_mask_targets.values()) == NAMES
        for sample, image in zip(dataset, images, strict=True):
            assert (sample["prediction"].mask.astype(int) - 1 == image.labels).all()
        results = dataset.evaluate_segmentations("prediction", gt_field="truth")
        assert results.metrics()["accuracy"] == 1
    finally:
        dataset.delete()


def test_samples_of_a_bulk_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/bulk.md, but for what needs the database."""
    write_documented_run(tmp_path)
    samples = run_example("import fiftyone", tmp_path, monkeypatch, "dataset =")["samples"]
    for sample, (image_id, labels) in zip(samples, LABELS.items(), strict=True):
        assert sample.filepath == str(tmp_path / "photos" / image_id)
        assert (sample["segments"].mask.astype(int) - 1 == labels).all()
        assert sample["unseen"] == pytest.approx((labels < 0.5).mean())
    assert len(samples) == 5


def test_a_dataset_of_a_bulk_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole example."""
    try:
        fiftyone.list_datasets()
    except Exception as error:
        pytest.skip(f"its database does not start: {' '.join(str(error).split())[:100]}")
    write_documented_run(tmp_path)
    dataset = run_example("import fiftyone", tmp_path, monkeypatch)["dataset"]
    try:
        dataset.reload()
        assert list(dataset.default_mask_targets.values()) == WORDS.names
        assert [Path(sample.filepath).name for sample in dataset] == list(LABELS)
    finally:
        dataset.delete()
