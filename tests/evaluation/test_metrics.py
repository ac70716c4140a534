"""Metrics against loops over single pixels and single pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagclip.evaluation.metrics import (
    ABSENT_AS_0,
    confusion_matrix,
    defined_classes,
    harmonic_mean,
    per_class,
    summarize,
)

labels = st.lists(st.integers(0, 6), min_size=1, max_size=40)
# Values of 4 and above are ignored.
CLASSES = 4


def pixels(values: list[int], limit: int) -> np.ndarray:
    return np.array([min(value, limit) for value in values], dtype=np.uint8)


def brute_force(truth: np.ndarray, prediction: np.ndarray, part: list[int]) -> dict[str, float]:
    """Mean IoU, mean accuracy and pixel accuracy over the classes of one part, pixel by pixel."""
    ious, accuracies, right, total = [], [], 0, 0
    for k in part:
        hits = union = true = 0
        for t, p in zip(truth.tolist(), prediction.tolist(), strict=True):
            if t >= CLASSES:
                continue
            hits += t == k and p == k
            union += t == k or p == k
            true += t == k
        if true:
            ious.append(hits / union)
            accuracies.append(hits / true)
        right, total = right + hits, total + true
    mean = [
        100 * sum(values) / len(values) if values else math.nan for values in (ious, accuracies)
    ]
    return {"mIoU": mean[0], "mACC": mean[1], "pAcc": 100 * right / total if total else math.nan}


@settings(max_examples=60, deadline=None)
@given(truth=labels, seed=st.integers(0, 99), seen=st.lists(st.booleans(), min_size=4, max_size=4))
def test_metrics_equal_a_count_pixel_by_pixel(
    truth: list[int], seed: int, seen: list[bool]
) -> None:
    true = pixels(truth, 6)
    prediction = np.random.default_rng(seed).integers(0, CLASSES, len(true)).astype(np.int16)
    confusion = confusion_matrix(true, prediction, CLASSES)
    assert confusion.sum() == sum(t < CLASSES for t in truth)
    for t, p in itertools.product(range(CLASSES), repeat=2):
        assert confusion[t, p] == sum((true == t) & (prediction == p))
    found = summarize(confusion, np.array(seen))
    parts = {
        "": list(range(CLASSES)),
        "-seen": [k for k in range(CLASSES) if seen[k]],
        "-unseen": [k for k in range(CLASSES) if not seen[k]],
    }
    for suffix, part in parts.items():
        expected = brute_force(true, prediction, part)
        assert found[f"mIoU{suffix}"] == pytest.approx(expected["mIoU"], nan_ok=True)
        assert found[f"pAcc{suffix}"] == pytest.approx(expected["pAcc"], nan_ok=True)
    assert found["mACC"] == pytest.approx(
        brute_force(true, prediction, parts[""])["mACC"], nan_ok=True
    )
    counts = defined_classes(confusion, np.array(seen))
    for suffix, part in parts.items():
        assert counts[f"mIoU{suffix}"] == len({t for t in truth if t in part})
        both = {t for t in truth if t in part} | {
            p for t, p in zip(true.tolist(), prediction.tolist(), strict=True)
            if t < CLASSES and p in part
        }  # fmt: skip
        with_absent = counts.get(f"mIoU{suffix}{ABSENT_AS_0}", counts[f"mIoU{suffix}"])
        assert with_absent == len(both)
        # As detectron2 0.6 and mmseg: the sum of the same IoUs over more classes.
        if both:
            name = f"mIoU{suffix}"
            total = np.nan_to_num(found[name]) * counts[name]
            assert found.get(name + ABSENT_AS_0, found[name]) == pytest.approx(total / len(both))
    assert defined_classes(confusion, None)["mIoU"] == counts["mIoU"]


def test_a_class_without_true_pixels_is_undefined_even_if_predicted() -> None:
    confusion = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 4]])
    values = per_class(confusion)
    np.testing.assert_array_equal(values["IoU"], [75, np.nan, 100])
    np.testing.assert_array_equal(values["ACC"], [75, np.nan, 100])
    found = summarize(confusion, np.array([True, True, False]))
    assert found["mIoU"] == 87.5
    assert (found["mIoU-seen"], found["mIoU-unseen"]) == (75, 100)


@pytest.mark.parametrize(
    ("confusion", "seen", "expected"),
    [
        (  # IoU 50, 100, predicted without labels
            [[2, 0, 2], [0, 4, 0], [0, 0, 0]],
            [True, False, True],
            {"mIoU": (75, 50), "mIoU-seen": (50, 25), "hIoU": (200 / 3, 40)},
        ),
        (  # unseen classes occur in predictions alone
            [[2, 0, 2], [0, 4, 0], [0, 0, 0]],
            [True, True, False],
            {"mIoU": (75, 50), "mIoU-unseen": (math.nan, 0), "hIoU": (math.nan, 0)},
        ),
        ([[3, 1, 0], [0, 4, 0], [0, 0, 0]], [True, False, False], {}),  # predicted nowhere
        ([[0, 4, 0], [4, 0, 0], [0, 0, 0]], [True, False, False], {}),
        ([[0, 2, 2], [4, 0, 0], [0, 0, 0]], [True, False, False], {}),  # 0 either way
    ],
)
def test_means_of_both_conventions_where_they_differ(
    confusion: list, seen: list[bool], expected: dict[str, tuple[float, float]]
) -> None:
    found = summarize(np.array(confusion), np.array(seen))
    assert {name for name in found if name.endswith(ABSENT_AS_0)} == {
        f"{name}{ABSENT_AS_0}" for name in expected
    }
    for name, (ours, theirs) in expected.items():
        assert found[name] == pytest.approx(ours, nan_ok=True), name
        assert found[f"{name}{ABSENT_AS_0}"] == pytest.approx(theirs), name


@pytest.mark.parametrize("seen", [True, False])
def test_one_part_without_classes_leaves_hiou_undefined(seen: bool) -> None:
    found = summarize(np.array([[3, 1], [0, 4]]), np.array([seen, seen]))
    assert found["mIoU"] == pytest.approx((75 + 80) / 2)
    assert math.isnan(found["hIoU"])
    assert math.isnan(found["mIoU-seen"]) is not seen
    assert math.isnan(found["pAcc-unseen"]) is seen


def test_without_a_partition_nothing_is_said_about_one() -> None:
    assert set(summarize(np.eye(2, dtype=int), None)) == {"mIoU", "mACC", "pAcc"}


def test_harmonic_mean() -> None:
    assert harmonic_mean(90, 45) == 60
    assert harmonic_mean(0, 0) == 0
    assert harmonic_mean(80, 0) == 0
    assert math.isnan(harmonic_mean(80, math.nan))


def test_no_pixel_at_all() -> None:
    confusion = confusion_matrix(np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.int16), 2)
    assert not confusion.any() and confusion.shape == (2, 2)
    assert all(
        math.isnan(value) for value in summarize(confusion, np.array([True, False])).values()
    )


def test_more_classes_than_a_byte_holds() -> None:
    truth = np.array([0, 299, 300, 65535], dtype=np.int32)
    confusion = confusion_matrix(truth, np.array([299, 299, 5, 5], dtype=np.int16), 300)
    assert confusion.sum() == 2
    assert confusion[0, 299] == confusion[299, 299] == 1


def test_images_of_many_pixels_are_counted_exactly() -> None:
    """float32 holds no odd number above 2**24, and stays there when 1 is added."""
    truth = np.zeros(2**24 + 3, np.uint8)
    assert confusion_matrix(truth, truth, 1)[0, 0] == 2**24 + 3


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([0, 1], [0, 2], "predicted classes 0 to 2, expected 0 to 1"),
        ([255, 255], [0, 2], "predicted classes 0 to 2, expected 0 to 1"),
        ([0, 1], [-1, 1], "predicted classes -1 to 1"),
        ([0, -1], [0, 1], "label -1, expected 0 or more"),
        ([0, 1], [0, 1, 1], r"labels of \(2,\), predictions of \(3,\)"),
        ([0, 1], [0.0, 1.0], "predictions of float64, expected integers"),
    ],
)
def test_what_cannot_be_counted_is_refused(truth: list, prediction: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(truth), np.array(prediction), 2)
