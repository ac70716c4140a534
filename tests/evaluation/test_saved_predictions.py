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
from helpers.toy_evaluation import IDS, IGNORE, NAMES, UNSEEN, Toy, metrics_content
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tagclip import Vocabulary, ZeroShotSemSegEvaluator
from tagclip.config.checks import check_config
from tagclip.data import read_indices
from tagclip.data.label_image import label_image
from tagclip.errors import ConfigError, DatasetError
from tagclip.evaluation import saved_folder
from tagclip.evaluation.coco_json import annotations_of, categories_of, number_images
from tagclip.evaluation.saved_folder import image_names
from tagclip.evaluation.saved_predictions import PredictionWriter, SavedPredictions
from tagclip.structures.vocabulary import ClassEntry


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


def test_pngs_hold_ids_and_show_the_colours_of_the_classes(toy: Toy, tmp_path: Path) -> None:
    evaluate(toy, tmp_path / "out", "png", 0, 1, 2)
    folder = tmp_path / "out" / "predictions"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    names = {f"{kind}/{i}.png" for kind in ("labels", "trusty") for i in range(3)}
    assert found == names | {"index.json"}
    with Image.open(folder / "labels" / "0.png") as picture:
        assert picture.mode == "P"
        values, colors = np.array(picture), np.array(picture.convert("RGB"))
    expected = outputs(toy)[0]["sem_seg_labels"].numpy()
    assert (values == np.array([*IDS, IGNORE])[expected]).all()
    assert (colors[expected < 0] == 255).all()
    assert (colors[expected >= 0] == toy.vocabulary.colors[expected[expected >= 0]]).all()
    index = json.loads((folder / "index.json").read_text())
    assert (index["format"], index["values"], index["no_class"]) == ("png", "ids", IGNORE)
    assert index["classes"] == [
        {"id": value, "name": name} for value, name in zip(IDS, NAMES, strict=True)
    ]


def test_pillow_counts_what_the_evaluator_counts(toy: Toy, tmp_path: Path) -> None:
    """Saved values compared with those of the label files, as anybody would."""
    evaluate(toy, tmp_path / "out", "png", 0, 1)
    equal = labelled = 0
    for file in ("0.png", "1.png"):
        with (
            Image.open(tmp_path / "out" / "predictions" / "labels" / file) as found,
            Image.open(tmp_path / "labels" / file) as label,
        ):
            true = np.array(label)
            equal += int((np.array(found) == true)[true != IGNORE].sum())
        labelled += int((true != IGNORE).sum())
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["metrics"]["pAcc"] == pytest.approx(100 * equal / labelled, abs=1e-12)


# The classes' ids, or all their label values, and the ignore label.
ID_LISTS = {
    "from one": (range(1, 59), 0),
    "gaps": ((3, 250, 7, 254), 255),
    "several values": (((5, 4, 200), (0, 1)), 17),
    "all bytes": (range(256), 256),
    "many": (range(700), 65535),
    "highest": ((65535, 0, 255), 65534),
    "deep ignore label": ((0, 1), 65535),
}


@pytest.mark.parametrize("kind", ID_LISTS)
def test_a_perfect_prediction_is_the_label_file(tmp_path: Path, kind: str) -> None:
    values, ignored = ID_LISTS[kind]
    entries = [(ids,) if isinstance(ids, int) else ids for ids in values]
    vocabulary = Vocabulary(
        kind,
        tuple(ClassEntry(ids[0], f"class {k}", ids=ids) for k, ids in enumerate(entries)),
        ignore_label=ignored,
    )
    canonical = {value: ids[0] for ids in entries for value in ids} | {ignored: ignored}
    label = np.array([*canonical, *canonical], np.uint16).reshape(2, -1)
    Image.fromarray(label).save(tmp_path / "label.png")
    indices = read_indices(tmp_path / "label.png", vocabulary, label.shape).astype(np.int16)
    indices[label == ignored] = -1
    files = [str(tmp_path / "a.jpg")]
    writer = PredictionWriter(tmp_path / "p", files, form="png", vocabulary=vocabulary)
    writer.start()
    writer.write(files[0], indices, {})
    writer.finish(metrics_content(vocabulary, 1))
    with Image.open(tmp_path / "p" / "labels" / "a.png") as picture:
        assert picture.mode == ("P" if label.max() < 256 else "I;16")
        found = np.array(picture)
    assert (found == np.vectorize(canonical.get)(label)).all()
    saved = SavedPredictions.open(tmp_path / "p", vocabulary, files)
    assert (saved.read(files[0])[0] == indices).all()
    index = json.loads((tmp_path / "p" / "index.json").read_text())
    assert index["no_class"] == ignored not in [entry["id"] for entry in index["classes"]]


def test_the_json_is_that_of_detectron2(toy: Toy) -> None:
    """Its RLEs; the ids are label values, as detectron2's of a dataset that has ids."""
    labels = toy.output(1)["sem_seg_labels"].numpy()
    evaluator = toy.evaluator()
    evaluator._contiguous_id_to_dataset_id = dict(enumerate(IDS))
    found = annotations_of(labels, {}, toy.vocabulary)
    for row, expected in zip(found, evaluator.encode_json_sem_seg(labels, ""), strict=True):
        assert {key: row[key] for key in ("category_id", "segmentation")} == {
            key: expected[key] for key in ("category_id", "segmentation")
        }


def coco_of(path: Path, capsys: pytest.CaptureFixture) -> tuple[COCO, dict[str, Any]]:
    coco = COCO(str(path))
    capsys.readouterr()
    return coco, json.loads(path.read_text())


def test_the_json_opens_with_pycocotools(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Against a count of pixels."""
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
        rows = coco.loadAnns(coco.getAnnIds(imgIds=index))
        assert len(rows) == len(np.unique(labels[labels >= 0]))
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
def test_many_words_need_16_bits(tmp_path: Path, classes: int, mode: str) -> None:
    vocabulary = Vocabulary.from_names([f"class {k}" for k in range(classes)])
    labels = np.array([[0, classes - 1, -1], [254, 1, 2]], dtype=np.int16)
    picture = label_image(labels, vocabulary)
    assert picture.mode == mode
    assert (np.array(picture) == labels.astype(np.uint8 if mode == "P" else np.uint16)).all()


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
    Image.fromarray(np.full((2, 2), 8, dtype=np.uint8)).save(folder / "labels" / "0.png")
    with pytest.raises(ConfigError, match=r"found value 8 on 0\.png, which is no class of"):
        opened(toy, tmp_path / "out").read(file)
    (folder / "labels" / "0.png").write_bytes(b"\x89PNG")
    with pytest.raises(DatasetError, match=r"0\.png: cannot decode"):
        opened(toy, tmp_path / "out").read(file)


@pytest.mark.parametrize("value", [None, "yes", 1, ...])
def test_an_index_that_does_not_say_what_there_is(toy: Toy, tmp_path: Path, value: Any) -> None:
    evaluate(toy, tmp_path / "out", "png", 0)
    path = tmp_path / "out" / "predictions" / "index.json"
    content = json.loads(path.read_text()) | {"has_trusty": value}
    if value is ...:
        del content["has_trusty"]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"index\.json: found damaged pred.*has_trusty.* eval"):
        opened(toy, tmp_path / "out")


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


@pytest.mark.parametrize("classes", [255, 256])
def test_a_folder_of_an_earlier_version_is_read(tmp_path: Path, classes: int) -> None:
    """Its PNGs hold indices, 255 or 65535 for no class; its first ones had fewer keys."""
    entries = tuple(ClassEntry(3 * k + 1, f"class {k}") for k in range(classes))
    vocabulary = Vocabulary("toy", entries)
    dtype, no_class = (np.uint8, 255) if classes == 255 else (np.uint16, 65535)
    stored = np.array([[0, 1, classes - 1], [4, no_class, 254]], dtype)
    (tmp_path / "labels").mkdir()
    Image.fromarray(stored).save(tmp_path / "labels" / "a.png")
    index = {
        "images": 1, "vocabulary": "toy", "vocabulary_fingerprint": vocabulary.fingerprint,
        "format": "png", "no_class": no_class, "has_trusty": False, "classes": vocabulary.names,
    }  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps(index))
    found, _ = SavedPredictions.open(tmp_path, vocabulary, ["a.jpg"]).read("a.jpg")
    assert (found == np.where(stored == no_class, -1, stored.astype(np.int32))).all()
    for damage in ({"values": "colors"}, {"no_class": None}):
        (tmp_path / "index.json").write_text(json.dumps(index | damage))
        with pytest.raises(ConfigError, match=r"index\.json: found damaged .*; evaluate again"):
            SavedPredictions.open(tmp_path, vocabulary, ["a.jpg"]).read("a.jpg")


def test_a_new_evaluation_makes_an_old_folder_its_own(toy: Toy, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "predictions"
    evaluate(toy, tmp_path / "out", "png", 0, 1)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"values": None, "no_class": 255}))
    # Killed while it removes what was there: neither the old evaluation nor a mixture.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_folder.shutil, "rmtree", _killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(toy, tmp_path / "out", "png", 2)
    with pytest.raises(ConfigError, match="no complete predictions"):
        opened(toy, tmp_path / "out")
    evaluate(toy, tmp_path / "out", "png", 2)
    saved = opened(toy, tmp_path / "out")
    assert saved.index["values"] == "ids" and not saved.has(files_of(toy)[0])


def _killed(folder: Path) -> None:
    (folder / "labels" / "0.png").unlink()
    raise KeyboardInterrupt


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
