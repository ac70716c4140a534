"""The evaluator against a count pixel by pixel; its file, its table, adding up processes."""

from __future__ import annotations

import csv
import json
import logging
import math
import multiprocessing
import os
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.evaluation import SemSegEvaluator
from helpers.detection import detection_by_thresholds
from helpers.toy_dataset import forget, vocabulary_tree, write_json, write_sample
from helpers.toy_evaluation import IGNORE, NAMES, UNSEEN, Toy

from tagclip import Vocabulary, ZeroShotSemSegEvaluator, register_zero_shot_sem_seg


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    name = f"evaluator_{uuid.uuid4().hex}"
    yield Toy(tmp_path, name)
    forget(name)


def brute_force(toy: Toy) -> dict[str, Any]:
    """All numbers, from one pixel after the other and one pair of pixels after the other."""
    pixels = list(toy.pixels())
    iou, accuracy = {}, {}
    for name in NAMES:
        hits = sum(t == p == name for t, p, _ in pixels)
        true = sum(t == name for t, _, _ in pixels)
        union = sum(name in (t, p) for t, p, _ in pixels)
        iou[name] = 100 * hits / union if true else None
        accuracy[name] = 100 * hits / true if true else None
    result: dict[str, Any] = {"IoU": iou, "ACC": accuracy}
    for suffix, part in (
        ("", NAMES),
        ("-seen", [n for n in NAMES if n not in UNSEEN]),
        ("-unseen", UNSEEN),
    ):
        defined = [iou[n] for n in part if iou[n] is not None]
        of_part = [t == p for t, p, _ in pixels if t in part]
        result[f"mIoU{suffix}"] = sum(defined) / len(defined)
        result[f"pAcc{suffix}"] = 100 * sum(of_part) / len(of_part)
    seen, unseen = result["mIoU-seen"], result["mIoU-unseen"]
    result["hIoU"] = 2 * seen * unseen / (seen + unseen)
    trusted = [w for t, _, w in pixels if t not in UNSEEN]
    others = [w for t, _, w in pixels if t in UNSEEN]
    pairs = [(a > b) + 0.5 * (a == b) for a in trusted for b in others]
    result["trusty-AUROC"] = 100 * sum(pairs) / len(pairs)
    detected = detection_by_thresholds([(-w, 1) for w in others], [(-w, 1) for w in trusted])
    return result | {f"trusty-{name}": value for name, value in detected.items()}


def test_equals_a_count_pixel_by_pixel(toy: Toy, tmp_path: Path) -> None:
    evaluator = toy.evaluator(output_dir=str(tmp_path / "out"))
    metrics = toy.run(evaluator, 0, 1, 2).evaluate()["sem_seg"]
    expected = brute_force(toy)
    assert "mACC" in metrics
    for key in set(expected) - {"IoU", "ACC"}:
        assert metrics[key] == pytest.approx(expected[key]), key
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for row, name in zip(content["classes"], NAMES, strict=True):
        assert row["name"] == name
        assert row["seen"] is (name not in UNSEEN)
        assert row["IoU"] == pytest.approx(expected["IoU"][name])
        assert row["ACC"] == pytest.approx(expected["ACC"][name])


def test_labels_and_scores_agree(toy: Toy) -> None:
    labels, scores = toy.evaluator(), toy.evaluator()
    toy.run(labels, 0, 1, 2)
    for i in range(3):
        scores.process([toy.input(i)], [{"sem_seg": toy.scores[i], "trusty": toy.trusty[i]}])
    assert scores.evaluate() == labels.evaluate()


def test_a_pixel_without_class_is_wrong_for_its_true_class(toy: Toy, tmp_path: Path) -> None:
    evaluator, output = toy.evaluator(output_dir=str(tmp_path / "out")), toy.output(0)
    output["sem_seg_labels"][:, 3:] = -1
    evaluator.process([toy.input(0)], [output])
    metrics = evaluator.evaluate()["sem_seg"]
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    lut, predicted = toy.vocabulary.label_lut(), output["sem_seg_labels"].numpy()
    truth = lut[toy.labels[0]]
    labelled = truth < 5
    for k, row in enumerate(content["classes"]):
        true = truth == k
        union = (true | (predicted == k)) & labelled
        if true.any():
            assert row["IoU"] == pytest.approx(100 * (true & (predicted == k)).sum() / union.sum())
        assert (row["pixels"], row["other"]) == (true.sum(), (true & (predicted == -1)).sum())
    assert metrics["pAcc"] == pytest.approx(100 * (truth == predicted).sum() / labelled.sum())


def test_reset_forgets_and_evaluate_can_be_repeated(toy: Toy) -> None:
    evaluator = toy.run(toy.evaluator(), 0)
    first = evaluator.evaluate()
    assert evaluator.evaluate() == first
    evaluator.reset()
    rest = toy.run(toy.evaluator(), 1, 2).evaluate()
    assert rest != first
    assert toy.run(evaluator, 1, 2).evaluate() == rest


def test_the_file_holds_what_the_result_depends_on(toy: Toy, tmp_path: Path) -> None:
    run = {"seed": 3, "protocol": "inductive", "weights": None, "templates": ["a {}"]}
    evaluator = toy.evaluator(output_dir=str(tmp_path / "out"), run_info=run)
    metrics = toy.run(evaluator, 0, 1, 2).evaluate()["sem_seg"]
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["metrics"] == metrics
    assert content["run"] == run
    assert content["images"] == 3
    assert (content["dataset"], content["vocabulary"], content["split"]) == (toy.name, "toy", "zs")
    assert content["vocabulary_fingerprint"] == toy.vocabulary.fingerprint
    assert content["classes_averaged"] == {
        "mIoU": 4, "mIoU-absent-as-0": 5,
        "mIoU-seen": 2, "mIoU-seen-absent-as-0": 3, "mIoU-unseen": 2,
    }  # fmt: skip
    assert content["classes_without_pixels"] == ["sofa"]
    assert content["classes"][4]["IoU"] is content["classes"][4]["ACC"] is None
    pixels = list(toy.pixels())
    assert content["confusion"] == [
        [sum(t == true and p == predicted for t, p, _ in pixels) for predicted in NAMES]
        for true in NAMES
    ]
    assert [row["pixels"] for row in content["classes"]] == list(map(sum, content["confusion"]))
    assert sorted(os.listdir(tmp_path / "out")) == ["metrics.json", "per_class.csv"]


def test_every_evaluation_adds_a_row_and_a_table_per_class(toy: Toy, tmp_path: Path) -> None:
    def rows(path: Path) -> list[dict[str, str]]:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    out, table = tmp_path / "out", tmp_path / "results.csv"
    options = {"output_dir": str(out), "results_table": table, "run_info": {"seed": 3}}
    first = toy.run(toy.evaluator(**options), 0, 1, 2).evaluate()["sem_seg"]
    classes = json.loads((out / "metrics.json").read_text())["classes"]
    assert rows(out / "per_class.csv") == [
        {"index": str(k)}
        | {key: "" if v is None else str(round(v, 4)) for key, v in row.items() if v != row["name"]}
        | {"name": row["name"], "seen": str(row["seen"])}
        for k, row in enumerate(classes)
    ]
    second = toy.run(toy.evaluator(**options), 0).evaluate()["sem_seg"]
    found = rows(table)
    assert [row["images"] for row in found] == ["3", "1"]
    for row, metrics in zip(found, (first, second), strict=True):
        assert row["mIoU"] == str(round(metrics["mIoU"], 4))
        assert (row["dataset"], row["seed"]) == (toy.name, "3")
        assert datetime.fromisoformat(row["time"]).tzinfo is not None
    # One file per class and dataset, of the last evaluation.
    assert len(rows(out / "per_class.csv")) == len(NAMES)


def test_the_table_shows_the_number_of_classes(toy: Toy, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        metrics = toy.run(toy.evaluator(), 0, 1, 2).evaluate()["sem_seg"]
    rows = [line.split() for line in caplog.text.splitlines()]
    assert ["mIoU", f"{metrics['mIoU']:.2f}", *("4", "of", "5")] in rows
    assert ["mIoU-unseen", f"{metrics['mIoU-unseen']:.2f}", "2"] in rows
    assert ["hIoU", f"{metrics['hIoU']:.2f}"] in rows
    assert "IoU undefined (no labelled pixel) for: sofa" in caplog.text


def test_both_means_where_a_predicted_class_has_no_label(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """detectron2 0.6 itself gives the other one; metrics.json, table, csv and log hold both."""
    name = f"absent_{uuid.uuid4().hex}"
    label = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [255, 255, 255, 255]], np.uint8)
    predicted = torch.tensor([[0, 0, 2, 2], [1, 1, 1, 1], [0, 1, 2, 2]])
    sample = write_sample(tmp_path, "a", np.zeros((3, 4, 3), np.uint8), label)
    classes = write_json(tmp_path / "c.json", vocabulary_tree(["cat", "dog", "sofa"], ["dog"]))
    register_zero_shot_sem_seg(
        name, tmp_path / "images", tmp_path / "labels", classes, image_ext="png"
    )
    item = [{"file_name": sample["file_name"]}]
    scores = torch.nn.functional.one_hot(predicted, 3).permute(2, 0, 1).float()
    out, rows = tmp_path / "out", tmp_path / "results.csv"
    ours = ZeroShotSemSegEvaluator(
        name, vocabulary=Vocabulary.from_metadata(name), distributed=False, output_dir=str(out),
        results_table=rows,
    )  # fmt: skip
    theirs = SemSegEvaluator(name, distributed=False)
    theirs.reset()
    try:
        for evaluator in (ours, theirs):
            evaluator.process(item, [{"sem_seg": scores}])
        with caplog.at_level(logging.INFO):
            metrics, other = (e.evaluate()["sem_seg"] for e in (ours, theirs))
    finally:
        forget(name)
    assert (metrics["mIoU"], metrics["mIoU-absent-as-0"]) == (75, 50)
    assert other["mIoU"] == 50 and math.isnan(other["IoU-sofa"])
    expected = {"mIoU": 50, "mIoU-seen": 25, "hIoU": 40}
    content = json.loads((out / "metrics.json").read_text())
    with rows.open(newline="") as file:
        (row,) = csv.DictReader(file)
    table = [line.split() for line in caplog.text.splitlines()]
    for key, value in expected.items():
        both = f"{key}-absent-as-0"
        assert content["metrics"][both] == pytest.approx(value)
        assert float(row[both]) == pytest.approx(value)
        assert any(line[:2] == [both, f"{value:.2f}"] for line in table)
    assert "mIoU-unseen-absent-as-0" not in content["metrics"]
    assert content["note"].startswith("The means of this project leave out")
    assert content["note"] in caplog.text


def test_coloured_labels_and_classes_of_several_values_count(tmp_path: Path) -> None:
    name = f"colours_{uuid.uuid4().hex}"
    tree = vocabulary_tree(["cat", "dog"], ["dog"], ignore_label=[254, 0], ignore_color=[7, 7, 7])
    tree["classes"] = [
        {"ids": [1, 2], "name": "cat", "color": [250, 0, 0]},
        {"ids": [5, 255], "name": "dog", "color": [0, 250, 0]},
    ]
    colors = np.zeros((3, 4, 3), np.uint8)
    colors[:] = [(250, 0, 0), (250, 0, 0), (0, 250, 0), (7, 7, 7)]
    values = np.array([[1, 2, 255, 254], [2, 1, 5, 0], [1, 1, 255, 0]], np.uint8)
    pixels = np.zeros((3, 4, 3), np.uint8)
    labels = (colors, values)
    samples = [write_sample(tmp_path, str(i), pixels, label) for i, label in enumerate(labels)]
    classes = write_json(tmp_path / "c.json", tree)
    register_zero_shot_sem_seg(
        name, tmp_path / "images", tmp_path / "labels", classes, image_ext="png"
    )
    vocabulary = Vocabulary.from_metadata(name)
    evaluator = ZeroShotSemSegEvaluator(
        name, vocabulary=vocabulary, distributed=False, output_dir=str(tmp_path / "out")
    )
    predicted = torch.tensor([[0, 1, 1, 0]] * 3)
    try:
        for sample in samples:
            evaluator.process([{"file_name": sample["file_name"]}], [{"sem_seg_labels": predicted}])
        evaluator.evaluate()
    finally:
        forget(name)
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["confusion"] == [[6, 6], [0, 6]]


@pytest.mark.parametrize("seen", [True, False])
def test_a_partition_with_one_part_has_no_harmonic_mean(
    toy: Toy, caplog: pytest.LogCaptureFixture, tmp_path: Path, seen: bool
) -> None:
    vocabulary = toy.vocabulary.with_seen([seen] * 5)
    evaluator = toy.evaluator(vocabulary=vocabulary, output_dir=str(tmp_path))
    with caplog.at_level(logging.INFO):
        metrics = toy.run(evaluator, 0, 1, 2).evaluate()["sem_seg"]
    assert metrics["mIoU"] == pytest.approx(brute_force(toy)["mIoU"])
    assert math.isnan(metrics["hIoU"]) and math.isnan(metrics["trusty-AUROC"])
    rows = [line.split() for line in caplog.text.splitlines()]
    assert ["hIoU", "n/a"] in rows
    assert [f"mIoU-{'unseen' if seen else 'seen'}", "n/a", "0"] in rows
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"]["hIoU"] is None


def test_an_open_partition_reports_no_parts(toy: Toy) -> None:
    vocabulary = Vocabulary(toy.vocabulary.name, toy.vocabulary.classes, ignore_label=IGNORE)
    metrics = toy.run(toy.evaluator(vocabulary=vocabulary), 0, 1, 2).evaluate()["sem_seg"]
    assert set(metrics) == {"mIoU", "mACC", "pAcc", "mIoU-absent-as-0"}


def test_the_trusty_map_is_judged_by_what_the_model_was_trained_on(toy: Toy) -> None:
    """Report and training may have other partitions, such as in cross-dataset evaluation."""
    reported = toy.vocabulary.with_seen(["cat"])
    other = toy.evaluator(vocabulary=reported)
    for i in range(3):
        other.process([toy.input(i, vocabulary=toy.vocabulary)], [toy.output(i)])
    metrics = other.evaluate()["sem_seg"]
    expected = brute_force(toy)
    for name in ("trusty-AUROC", "trusty-AUPR", "trusty-FPR95"):
        assert metrics[name] == pytest.approx(expected[name])
    assert metrics["mIoU-seen"] == pytest.approx(expected["IoU"]["cat"])


def test_without_a_trusty_map_nothing_is_detected(toy: Toy) -> None:
    evaluator = toy.evaluator()
    evaluator.process([toy.input(0)], [{"sem_seg_labels": toy.output(0)["sem_seg_labels"]}])
    assert not any("trusty" in name for name in evaluator.evaluate()["sem_seg"])


def test_memory_does_not_grow_with_images(toy: Toy) -> None:
    def size(evaluator: ZeroShotSemSegEvaluator) -> int:
        values = vars(evaluator).values()
        arrays = sum(value.nbytes for value in values if isinstance(value, np.ndarray))
        return arrays + sum(len(v) for v in values if isinstance(v, (list, dict)))

    evaluator = toy.run(toy.evaluator(), 0)
    before = size(evaluator)
    toy.run(evaluator, 1, 2, 0, 1, 2)
    assert size(evaluator) == before


def test_a_part_of_the_dataset_is_announced(toy: Toy, caplog: pytest.LogCaptureFixture) -> None:
    toy.run(toy.evaluator(), 0).evaluate()
    assert "evaluated 1 images, the dataset has 3" in caplog.text


def _evaluate_in_group(toy: Toy, rank: int, shares: list[list[int]], folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meet", world_size=len(shares), rank=rank
    )
    evaluator = toy.evaluator(distributed=True, output_dir=str(folder / "group"))
    toy.run(evaluator, *shares[rank])
    assert (evaluator.evaluate() is None) == (rank > 0)


def test_processes_add_up_to_one(toy: Toy, tmp_path: Path) -> None:
    """Three processes, one of them without an image, write what one process writes."""
    context, shares = multiprocessing.get_context("fork"), [[2], [], [0, 1]]
    processes = [
        context.Process(target=_evaluate_in_group, args=(toy, rank, shares, tmp_path))
        for rank in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    toy.run(toy.evaluator(output_dir=str(tmp_path / "one")), 0, 1, 2).evaluate()
    group, one = (tmp_path / name / "metrics.json" for name in ("group", "one"))
    assert group.read_bytes() == one.read_bytes()
