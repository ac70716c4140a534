"""Mean IoUs of other packages: against the numbers that the packages gave, and definitions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tagclip.evaluation.metrics import confusion_matrix, summarize
from tagclip.scoring.conventions import CONVENTIONS
from tagclip.scoring.mean_iou import MeanIoU

FILES = Path(__file__).parent / "files"
TREE = json.loads((FILES / "conventions.json").read_text(encoding="utf-8"))
NUMBERS = json.loads((FILES / "conventions_numbers.json").read_text(encoding="utf-8"))
CLASSES, IGNORED = TREE["classes"], TREE["ignored"]
SETS = {
    name: [(np.array(pair["truth"]), np.array(pair["prediction"])) for pair in pairs]
    for name, pairs in TREE["sets"].items()
}
Pairs = list[tuple[np.ndarray, np.ndarray]]


def mean(name: str, pairs: Pairs, classes: int = CLASSES) -> float:
    metric = MeanIoU(CONVENTIONS[name], {"mIoU": np.ones(classes, dtype=bool)})
    for truth, prediction in pairs:
        metric.update(confusion_matrix(truth, prediction, classes))
    return metric.values()["mIoU"]


@pytest.mark.parametrize("key", SETS)
@pytest.mark.parametrize("name", NUMBERS)
def test_equals_what_the_package_gave(name: str, key: str) -> None:
    assert NUMBERS[name]["package"] in CONVENTIONS[name].source.replace("MONAI", "monai")
    # Most of them count in float32.
    assert mean(name, SETS[key]) == pytest.approx(NUMBERS[name]["percent"][key], rel=1e-5)


def test_the_stored_inputs_tell_the_conventions_apart() -> None:
    found = {
        name: tuple(round(mean(name, pairs), 3) for pairs in SETS.values()) for name in NUMBERS
    }
    found.pop("mmseg")
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("key", SETS)
def test_detectron2(key: str, tmp_path: Path) -> None:
    files = {}
    for number, (truth, _) in enumerate(SETS[key]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(truth.astype(np.uint8)).save(path)
        files[str(number)] = str(path)
    name = f"conventions of {tmp_path}"
    rows = [{"file_name": image, "sem_seg_file_name": path} for image, path in files.items()]
    DatasetCatalog.register(name, lambda: rows)
    MetadataCatalog.get(name).set(
        stuff_classes=[str(k) for k in range(CLASSES)], ignore_label=IGNORED
    )
    evaluator = SemSegEvaluator(name, distributed=False)
    evaluator.reset()
    for image, (_, prediction) in zip(files, SETS[key], strict=True):
        scores = torch.nn.functional.one_hot(torch.from_numpy(prediction), CLASSES)
        evaluator.process([{"file_name": image}], [{"sem_seg": scores.permute(2, 0, 1)}])
    DatasetCatalog.remove(name)
    theirs = evaluator.evaluate()["sem_seg"]["mIoU"]
    assert mean("detectron2", SETS[key]) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("key", SETS)
def test_evaluate_by_its_definition(key: str) -> None:
    """Areas of intersection and union added over all images, nanmean of their quotients."""
    both, either = np.zeros((2, CLASSES))
    for truth, prediction in SETS[key]:
        truth, prediction = truth[truth != IGNORED], prediction[truth != IGNORED]
        hits = np.histogram(prediction[prediction == truth], CLASSES, (0, CLASSES - 1))[0]
        sizes = [np.histogram(x, CLASSES, (0, CLASSES - 1))[0] for x in (truth, prediction)]
        both += hits
        either += sum(sizes) - hits
    with np.errstate(invalid="ignore"):
        definition = float(np.nanmean(both / either))
    assert mean("evaluate", SETS[key]) == pytest.approx(100 * definition, rel=1e-12)


def plain(name: str, pairs: Pairs, chosen: set[int]) -> float:
    """Set by set, in the words of `Convention`."""
    how, units = CONVENTIONS[name], []
    if how.unit == "dataset":
        pairs = [tuple(np.concatenate([pair[k].ravel() for pair in pairs]) for k in (0, 1))]
    for truth, prediction in pairs:
        values = []
        for k in sorted(chosen):
            true = {*np.flatnonzero(truth == k)}
            predicted = {*np.flatnonzero((prediction == k) & (truth != IGNORED))}
            counts = {"true": true, "either": true | predicted, "all": {0}}[how.counted]
            if counts:
                either = true | predicted
                values.append(len(true & predicted) / len(either) if either else how.empty)
        units += values if how.unit != "image" else [np.mean(values)] if values else []
    value = 100 * float(np.mean(units)) if units else math.nan
    return value if how.decimals is None else round(value, how.decimals)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(CONVENTIONS)),
    images=st.integers(1, 4),
    known=st.sets(st.integers(0, 3), min_size=1),
    chosen=st.sets(st.integers(0, 3), min_size=1),
    ignored=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_groups_of_classes(
    name: str, images: int, known: set[int], chosen: set[int], ignored: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = [*known, *[IGNORED] * ignored]
    pairs = [
        (rng.choice(values, (3, 5)), rng.choice(sorted(known | {seed % 4}), (3, 5)))
        for _ in range(images)
    ]
    group = np.isin(np.arange(CLASSES), sorted(chosen))
    metric = MeanIoU(CONVENTIONS[name], {"all": np.ones(CLASSES, dtype=bool), "group": group})
    halves = [MeanIoU(CONVENTIONS[name], {"all": group | True, "group": group}) for _ in range(2)]
    for number, (truth, prediction) in enumerate(pairs):
        confusion = confusion_matrix(truth, prediction, CLASSES)
        metric.update(confusion)
        halves[number % 2].update(confusion)
    found = metric.values()
    tolerance = {"rel": 1e-9, "nan_ok": True, "abs": 0.0051 if name == "mmseg" else 0}
    assert found["all"] == pytest.approx(plain(name, pairs, {0, 1, 2, 3}), **tolerance)
    assert found["group"] == pytest.approx(plain(name, pairs, chosen), **tolerance)
    halves[0].sums += halves[1].sums
    halves[0].counts += halves[1].counts
    assert halves[0].values() == pytest.approx(found, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("key", SETS)
def test_ours_is_the_evaluators(key: str) -> None:
    total = sum(confusion_matrix(*pair, CLASSES) for pair in SETS[key])
    assert mean("tagclip", SETS[key]) == pytest.approx(summarize(total, None)["mIoU"], rel=1e-12)


def test_pixels_without_a_class_are_misses() -> None:
    metric = MeanIoU(CONVENTIONS["sklearn"], {"mIoU": np.ones(2, dtype=bool)})
    metric.update(np.array([[3, 0, 1], [0, 4, 0]]))
    assert metric.values()["mIoU"] == pytest.approx(100 * (3 / 4 + 1) / 2)
