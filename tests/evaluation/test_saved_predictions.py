"""Predictions on disk: what is read is what was predicted, whoever wrote it and in which form."""

from __future__ import annotations

import json
import multiprocessing
import os
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.toy_dataset import forget
from helpers.toy_evaluation import IDS, NAMES, UNSEEN, Toy, metrics_content
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tagclip import Vocabulary, ZeroShotSemSegEvaluator
from tagclip.config.checks import check_config
from tagclip.errors import ConfigError, DatasetError
from tagclip.evaluation.coco_json import annotations_of, categories_of, number_images
from tagclip.evaluation.saved_folder import image_names
from tagclip.evaluation.saved_predictions import PredictionWriter, SavedPredictions


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    name = f"predictions_{uuid.uuid4().hex}"
    yield Toy(tmp_path, name)
    forget(name)


def outputs(toy: Toy) -> list[dict[str, torch.Tensor]]:
    """Predictions; the first image has pixels without a class, the last nothing else."""
    found = [toy.output(index) for index in range(3)]
    found[0]["sem_seg_labels"][:2] = -1
    found[2]["sem_seg_labels"][:] = -1
    return found


def evaluate(toy: Toy, folder: Path, kind: str, *indices: int) -> ZeroShotSemSegEvaluator:
    evaluator = toy.evaluator(output_dir=str(folder), save_predictions=kind)
    for index in indices:
        evaluator.process([toy.input(index)], [outputs(toy)[index]])
    evaluator.evaluate()
    return evaluator


def files_of(toy: Toy) -> list[str]:
    return [sample["file_name"] for sample in toy.samples]


def opened(toy: Toy, folder: Path) -> SavedPredictions:
    return SavedPredictions.open(folder / "predictions", toy.vocabulary, files_of(toy))


@pytest.mark.parametrize("kind", ["png", "json"])
def test_what_is_read_is_what_was_predicted(toy: Toy, tmp_path: Path, kind: str) -> None:
    evaluate(toy, tmp_path / "out", kind, 0, 1, 2)
    saved = opened(toy, tmp_path / "out")
    for file, output in zip(files_of(toy), outputs(toy), strict=True):
        labels, trusty = saved.read(file)
        assert saved.has(file) and labels.dtype == np.int32
        assert (labels == output["sem_seg_labels"].numpy()).all()
        if kind == "png":
            assert np.abs(trusty - output["trusty"].float().numpy()).max() <= 0.5001 / 255
        else:
            assert trusty is None


def test_pngs_hold_indices_and_show_the_colours_of_the_classes(toy: Toy, tmp_path: Path) -> None:
    evaluate(toy, tmp_path / "out", "png", 0, 1, 2)
    folder = tmp_path / "out" / "predictions"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    names = {f"{kind}/{i}.png" for kind in ("labels", "trusty") for i in range(3)}
    assert found == names | {"index.json"}
    with Image.open(folder / "labels" / "0.png") as picture:
        assert picture.mode == "P"
        indices, colors = np.array(picture), np.array(picture.convert("RGB"))
    expected = outputs(toy)[0]["sem_seg_labels"].numpy()
    assert (indices == np.where(expected < 0, 255, expected)).all()
    assert (colors[expected < 0] == 255).all()
    assert (colors[expected >= 0] == toy.vocabulary.colors[expected[expected >= 0]]).all()


def coco_of(path: Path, capsys: pytest.CaptureFixture) -> tuple[COCO, dict[str, Any]]:
    coco = COCO(str(path))
    capsys.readouterr()
    return coco, json.loads(path.read_text())


def test_the_json_opens_with_pycocotools(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Against detectron2's own encoding and a count of pixels."""
    evaluator = toy.evaluator(output_dir=str(tmp_path / "out"), save_predictions="json")
    for index, output in enumerate(outputs(toy)):
        output["sem_seg_scores"] = toy.scores[index].amax(0).half()
        evaluator.process([toy.input(index)], [output])
    evaluator.evaluate()
    folder = tmp_path / "out" / "predictions"
    assert sorted(os.listdir(folder)) == ["index.json", "sem_seg_predictions.json"]
    coco, content = coco_of(folder / "sem_seg_predictions.json", capsys)
    assert [(row["id"], row["name"]) for row in coco.loadCats(coco.getCatIds())] == list(
        zip(IDS, NAMES, strict=True)
    )
    assert coco.getCatIds(supNms=["unseen"]) == [IDS[NAMES.index(name)] for name in UNSEEN]
    # The files are called 0.png to 2.png.
    assert [(row["id"], row["file_name"]) for row in content["images"]] == [
        (i, f"{i}.png") for i in range(3)
    ]
    assert [row["id"] for row in content["annotations"]] == list(
        range(1, len(content["annotations"]) + 1)
    )
    for index, output in enumerate(outputs(toy)):
        labels = output["sem_seg_labels"].numpy()
        scores = toy.scores[index].amax(0).half().float().numpy()
        expected = evaluator.encode_json_sem_seg(labels, "") if labels.min() >= 0 else None
        rows = coco.loadAnns(coco.getAnnIds(imgIds=index))
        assert len(rows) == len(np.unique(labels[labels >= 0]))
        if expected:
            assert [row["segmentation"] for row in rows] == [r["segmentation"] for r in expected]
        for row in rows:
            mask = labels == IDS.index(row["category_id"])
            assert (coco.annToMask(row) == mask).all() and row["area"] == mask.sum()
            top, left = np.argwhere(mask).min(0)
            bottom, right = np.argwhere(mask).max(0) + 1
            assert row["bbox"] == [left, top, right - left, bottom - top]
            assert row["score"] == pytest.approx(scores[mask].mean(), abs=1e-4)
            assert row["iscrowd"] == 0
    results = coco.loadRes(content["annotations"])
    evaluation = COCOeval(coco, results, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    assert evaluation.stats[0] == 1


def test_images_are_numbered_as_coco_does() -> None:
    assert number_images(["val/000139.jpg", "val/000285.jpg"]) == {
        "val/000139.jpg": 139, "val/000285.jpg": 285
    }  # fmt: skip
    for files in (["a/1.jpg", "b/1.jpg"], ["a/1.jpg", "x.jpg"], ["²/².jpg"]):
        assert number_images(files) == {file: i for i, file in enumerate(files, 1)}


def test_scores_of_all_classes_will_do(toy: Toy) -> None:
    labels, scores = toy.output(0)["sem_seg_labels"].numpy(), toy.scores[0]
    rows = annotations_of(labels, {"sem_seg": scores}, toy.vocabulary)
    assert rows == annotations_of(labels, {"sem_seg_scores": scores.amax(0)}, toy.vocabulary)
    assert "score" not in annotations_of(labels, {}, toy.vocabulary)[0]
    groups = {row["supercategory"] for row in categories_of(Vocabulary.from_names(NAMES))}
    assert groups == {"class"}


def test_a_json_of_an_earlier_version_is_read(toy: Toy, tmp_path: Path) -> None:
    evaluator = evaluate(toy, tmp_path / "out", "json", 1)
    labels = outputs(toy)[1]["sem_seg_labels"].numpy()
    rows = evaluator.encode_json_sem_seg(labels, "1.png")
    path = tmp_path / "out" / "predictions" / "sem_seg_predictions.json"
    path.write_text(json.dumps(rows))
    saved = opened(toy, tmp_path / "out")
    assert [saved.has(file) for file in files_of(toy)] == [False, True, False]
    assert (saved.read(files_of(toy)[1])[0] == labels).all()


@pytest.mark.parametrize(("classes", "mode"), [(255, "P"), (256, "I;16")])
def test_many_classes_need_16_bits(tmp_path: Path, classes: int, mode: str) -> None:
    vocabulary = Vocabulary.from_names([f"class {k}" for k in range(classes)])
    files = [str(tmp_path / "a.jpg")]
    writer = PredictionWriter(tmp_path / "predictions", files, form="png", vocabulary=vocabulary)
    labels = np.array([[0, classes - 1, -1], [254, 1, 2]], dtype=np.int16)
    writer.start()
    writer.write(files[0], labels, {})
    writer.finish(metrics_content(vocabulary, 1))
    with Image.open(tmp_path / "predictions" / "labels" / "a.png") as picture:
        assert picture.mode == mode
    found, trusty = SavedPredictions.open(tmp_path / "predictions", vocabulary, files).read(
        files[0]
    )
    assert (found == labels).all() and trusty is None


def _evaluate_in_group(toy: Toy, rank: int, kind: str, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meet_{kind}", world_size=3, rank=rank
    )
    evaluator = toy.evaluator(
        distributed=True, output_dir=str(folder / kind), save_predictions=kind
    )
    for index in ([2], [], [0, 1])[rank]:
        evaluator.process([toy.input(index)], [outputs(toy)[index]])
    evaluator.evaluate()


@pytest.mark.parametrize("kind", ["png", "json"])
def test_processes_write_together(toy: Toy, tmp_path: Path, kind: str) -> None:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_evaluate_in_group, args=(toy, rank, kind, tmp_path))
        for rank in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    saved = opened(toy, tmp_path / kind)
    assert saved.index["images"] == 3
    assert not [path for path in saved.folder.iterdir() if path.name.startswith(".")]
    for file, output in zip(files_of(toy), outputs(toy), strict=True):
        assert (saved.read(file)[0] == output["sem_seg_labels"].numpy()).all()


@pytest.mark.parametrize("kind", ["png", "json"])
def test_an_earlier_evaluation_leaves_nothing(toy: Toy, tmp_path: Path, kind: str) -> None:
    evaluate(toy, tmp_path / "out", "png", 0, 1)
    evaluator = evaluate(toy, tmp_path / "out", kind, 2)
    saved = opened(toy, tmp_path / "out")
    assert [saved.has(file) for file in files_of(toy)] == [False, False, True]
    evaluator.evaluate()
    assert (opened(toy, tmp_path / "out").read(files_of(toy)[2])[0] == -1).all()
    # Begun, not finished: what is there is no evaluation.
    evaluator.reset()
    evaluator.process([toy.input(0)], [outputs(toy)[0]])
    with pytest.raises(ConfigError, match=r"index\.json: no such file, no complete predictions"):
        opened(toy, tmp_path / "out")


def test_nothing_is_written_by_default(toy: Toy, tmp_path: Path) -> None:
    evaluate(toy, tmp_path / "out", "", 0)
    assert not (tmp_path / "out" / "predictions").exists()


def test_the_writer_does_not_grow(toy: Toy, tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path / "p", files_of(toy), form="json", vocabulary=toy.vocabulary)
    writer.start()
    before = {name: repr(value) for name, value in vars(writer).items()}
    for _ in range(3):
        writer.write(files_of(toy)[0], outputs(toy)[0]["sem_seg_labels"].numpy(), {})
    assert {name: repr(value) for name, value in vars(writer).items()} == before


@given(st.sets(st.from_regex(r"\A([ab]/){0,2}[xy]\.(jpg|png)\Z"), min_size=1))
@settings(max_examples=40, deadline=None)
def test_names_are_unique_and_know_no_machine(images: set[str]) -> None:
    names = image_names(f"/data/{image}" for image in images)
    moved = image_names(f"/another/place/{image}" for image in images)
    assert list(names.values()) == list(moved.values())
    assert len({name.stem for name in names.values()}) == len(images)
    for file, name in names.items():
        assert file.endswith(name.file) and not PurePosixPath(name.file).is_absolute()
        assert name.stem in (name.file, name.file[:-4])


def test_damage_is_named(toy: Toy, tmp_path: Path) -> None:
    evaluate(toy, tmp_path / "out", "png", 0)
    folder, file = tmp_path / "out" / "predictions", files_of(toy)[0]
    other = Vocabulary.from_names(["cat"])
    with pytest.raises(ConfigError, match="found format 'png' and class list .*; evaluate again"):
        SavedPredictions.open(folder, other, files_of(toy))
    Image.fromarray(np.full((2, 2), 7, dtype=np.uint8)).save(folder / "labels" / "0.png")
    with pytest.raises(ConfigError, match=r"found class 7 on 0\.png, expected 0 to 4"):
        opened(toy, tmp_path / "out").read(file)
    (folder / "labels" / "0.png").write_bytes(b"\x89PNG")
    with pytest.raises(DatasetError, match=r"0\.png: cannot decode"):
        opened(toy, tmp_path / "out").read(file)


def test_a_damaged_json_is_named(toy: Toy, tmp_path: Path) -> None:
    evaluate(toy, tmp_path / "out", "json", 0)
    path = tmp_path / "out" / "predictions" / "sem_seg_predictions.json"
    content = json.loads(path.read_text())
    segment = content["annotations"][0]["segmentation"]
    counts = segment.pop("counts")
    for change in ({}, {"counts": ""}, {"counts": counts[:-1]}, {"counts": counts, "size": [9, 8]}):
        content["annotations"][0]["segmentation"] = segment | change
        path.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=r"damaged segment of 0\.png") as error:
            opened(toy, tmp_path / "out").read(files_of(toy)[0])
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"found no 1\.png, expected all images"):
        opened(toy, tmp_path / "out").read(files_of(toy)[1])
    for key, damage in (("category_id", 1), ("image_id", 9), ("image_id", [])):
        path.write_text(json.dumps(content | {"annotations": [{key: damage}]}))
        with pytest.raises(ConfigError, match="found damaged predictions .*; evaluate again"):
            opened(toy, tmp_path / "out").has(files_of(toy)[0])
    for text in ("[1", "[1]", "{}1", "{}"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="found damaged predictions .*; evaluate again"):
            opened(toy, tmp_path / "out").has(files_of(toy)[0])


def test_a_folder_of_an_earlier_version_is_read(toy: Toy, tmp_path: Path) -> None:
    evaluate(toy, tmp_path / "out", "png", 0)
    path = tmp_path / "out" / "predictions" / "index.json"
    index = json.loads(path.read_text())
    for key in ("dataset", "split"):
        del index[key]
    path.write_text(json.dumps(index))
    assert opened(toy, tmp_path / "out").read(files_of(toy)[0])[0].min() == -1


@pytest.mark.parametrize("form", ["png", "json"])
def test_machines_that_share_no_folder_are_told(toy: Toy, tmp_path: Path, form: str) -> None:
    writer = PredictionWriter(tmp_path / "p", files_of(toy), form=form, vocabulary=toy.vocabulary)
    writer.start()
    writer.write(files_of(toy)[0], np.zeros((2, 2), dtype=np.int16), {})
    with pytest.raises(ConfigError, match="predictions of 1 images, expected 3; set an OUTPUT_DIR"):
        writer.finish(metrics_content(toy.vocabulary, 3))


def test_what_cannot_be_written_is_one_line(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = PredictionWriter(
        tmp_path / "file" / "p", files_of(toy), form="png", vocabulary=toy.vocabulary
    )
    with pytest.raises(ConfigError, match="predictions cannot be written") as error:
        writer.write(files_of(toy)[0], np.zeros((2, 2), dtype=np.int16), {})
    assert "\n" not in str(error.value)


def test_the_key_is_checked_before_anything_starts(tiny_cfg: CfgNode) -> None:
    tiny_cfg.TEST.SAVE_PREDICTIONS = "jpg"
    with pytest.raises(ConfigError, match=r"SAVE_PREDICTIONS: found 'jpg', expected '' or 'png'"):
        check_config(tiny_cfg)
