"""Class lists of every form, in an order of their own, and COCO jsons that mislead."""

from __future__ import annotations

import csv
import json
import math
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.segment_folders import label_rows, write_segment_folder
from helpers.shell_blocks import run_blocks, shell_blocks
from helpers.tiny_run import changed, exit_of, load_tool, tiny_tree, write_tiny_dataset
from helpers.toy_dataset import forget, write_json, write_sample
from helpers.toy_evaluation import IDS, IGNORE, NAMES, UNSEEN, Toy
from PIL import Image
from pycocotools import mask as coco_mask

from tagclip import register_zero_shot_sem_seg
from tagclip.errors import TagCLIPError
from tagclip.evaluation.segment_rows import FORMATS
from tagclip.scoring.matching import ClassMatch
from tagclip.scoring.predictions import PredictionFiles
from tagclip.structures.vocabulary import Vocabulary

# The predictor's own order, in which "grass" is 0.
THEIRS = ["grass", "sofa", "cat", "sky", "dog"]


@pytest.fixture
def tool(repository: Path) -> ModuleType:
    found = load_tool(repository / "tools" / "score_predictions.py")
    # Pictures are the business of test_score_predictions.py.
    found.draw_report = lambda args, content, match: args.output
    return found


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    name = f"score_{uuid.uuid4().hex}"
    yield Toy(tmp_path, name)
    forget(name)


def score(tool: ModuleType, toy: Toy, predictions: Path, *words: object) -> dict[str, Any]:
    output = toy.folder / f"scored_{uuid.uuid4().hex}"
    words = (predictions, "--dataset", toy.name, "--output", output, "--workers", 0, *words)
    tool.main(tool.parse_args(list(map(str, words))))
    (path,) = output.glob("inference/*/metrics.json")
    return json.loads(path.read_text())


def plain_count(toy: Toy, indices: list[np.ndarray]) -> np.ndarray:
    """(K, K) pixels by true and predicted class, one by one."""
    counts = np.zeros((len(NAMES), len(NAMES)), dtype=int)
    for label, predicted in zip(toy.labels, indices, strict=True):
        for true, found in zip(label.flat, predicted.flat, strict=True):
            if true != IGNORE and found >= 0:
                counts[IDS.index(true), found] += 1
    return counts


def ious(toy: Toy, indices: list[np.ndarray]) -> dict[str, float]:
    """Name -> IoU in percent of the classes with true pixels."""
    found = {}
    for k, name in enumerate(NAMES):
        true = [(label == IDS[k]) for label in toy.labels]
        known = [label != IGNORE for label in toy.labels]
        guess = [(i == k) & mask for i, mask in zip(indices, known, strict=True)]
        both = sum(int((t & g).sum()) for t, g in zip(true, guess, strict=True))
        either = sum(int((t | g).sum()) for t, g in zip(true, guess, strict=True))
        if sum(int(t.sum()) for t in true):
            found[name] = 100 * both / either
    return found


def check(content: dict[str, Any], toy: Toy, indices: list[np.ndarray]) -> None:
    assert content["confusion"] == plain_count(toy, indices).tolist()
    expected, metrics = ious(toy, indices), content["metrics"]
    for row in content["classes"]:
        assert row["IoU"] == pytest.approx(expected.get(row["name"]), abs=1e-12)
    groups = {
        "mIoU": list(expected.values()),
        "mIoU-seen": [v for n, v in expected.items() if n not in UNSEEN],
        "mIoU-unseen": [v for n, v in expected.items() if n in UNSEEN],
    }
    for name, values in groups.items():
        assert metrics[name] == pytest.approx(math.fsum(values) / len(values), abs=1e-12)
    seen, unseen = metrics["mIoU-seen"], metrics["mIoU-unseen"]
    assert metrics["hIoU"] == pytest.approx(2 * seen * unseen / (seen + unseen), abs=1e-12)


def guesses(toy: Toy) -> list[np.ndarray]:
    """(H, W) indices of NAMES."""
    return [scores.argmax(dim=0).numpy() for scores in toy.scores]


def write(folder: Path, arrays: list[np.ndarray], suffix: str) -> Path:
    folder.mkdir()
    for i, values in enumerate(arrays):
        path = folder / f"{i}{suffix}"
        if suffix == ".npy":
            np.save(path, values)
        elif suffix == ".npz":
            np.savez_compressed(path, values)
        else:
            Image.fromarray(values).save(path)
    return folder


def as_theirs(indices: list[np.ndarray], kind: type = np.uint8) -> list[np.ndarray]:
    order = np.array([THEIRS.index(name) for name in NAMES])
    return [order[values].astype(kind) for values in indices]


def class_list(folder: Path, form: str) -> Path:
    path = folder / f"theirs.{form}"
    if form == "txt":
        path.write_text("\r\n".join(name.upper() for name in THEIRS) + "\r\n")
    elif form == "json":
        rows = [{"id": index, "name": name} for index, name in enumerate(THEIRS)]
        write_json(path, {"format": 1, "name": "theirs", "classes": rows})
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["id", "name"], *enumerate(THEIRS)])
    return path


@pytest.mark.parametrize("form", ["txt", "json", "csv"])
@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_classes_are_matched_by_name(tool: ModuleType, toy: Toy, form: str, suffix: str) -> None:
    found = guesses(toy)
    folder = write(toy.folder / "theirs", as_theirs(found), suffix)
    check(score(tool, toy, folder, "--classes", class_list(toy.folder, form)), toy, found)


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("form", ["", "txt", "json", "csv"])
def test_score_maps(tool: ModuleType, toy: Toy, axis: int, kind: type, form: str) -> None:
    """Classes first or last, of our list or of theirs; the first of equal scores wins."""
    order = [NAMES.index(name) for name in THEIRS] if form else list(range(len(NAMES)))
    maps = [np.moveaxis(s.numpy()[order], 0, axis).astype(kind) for s in toy.scores]
    found = [np.array(order)[m.argmax(axis=axis)] for m in maps]
    folder = write(toy.folder / "theirs", maps, ".npy" if axis else ".npz")
    words = ["--classes", class_list(toy.folder, form)] if form else []
    check(score(tool, toy, folder, *words), toy, found)


@pytest.mark.parametrize("form", ["png", "json"])
def test_our_own_predictions_of_another_dataset_are_refused(
    tool: ModuleType, toy: Toy, tmp_path: Path, form: str
) -> None:
    """Its images have the same names and sizes."""
    ours, other = tmp_path / "ours", Toy(tmp_path / "other", f"{toy.name}_other")
    toy.run(toy.evaluator(output_dir=str(ours), save_predictions=form), 0, 1, 2).evaluate()
    folder = ours / "predictions"
    file = {"png": "labels", "json": "sem_seg_predictions.json"}[form]
    for path in (folder, folder / file):
        words = ["--merge", "last"] if path.suffix == ".json" else []
        check(score(tool, toy, path, *words), toy, guesses(toy))
        with pytest.raises(TagCLIPError, match=f"predictions of {toy.name}, exp.* of {other.name}"):
            score(tool, other, path)
    # Another name of the same images, which both are known by.
    toy.name, known = f"{toy.name}_again", toy.name
    folders = toy.folder / "images", toy.folder / "labels"
    register_zero_shot_sem_seg(toy.name, *folders, toy.json, image_ext="png")
    check(score(tool, toy, folder), toy, guesses(toy))
    forget(known)
    with pytest.raises(TagCLIPError, match=f"name {known} as the dataset"):
        score(tool, toy, folder)
    forget(toy.name, other.name)


@pytest.fixture
def ours(toy: Toy) -> Path:
    """``predictions/`` of an evaluation."""
    evaluator = toy.evaluator(output_dir=str(toy.folder / "ours"), save_predictions="png")
    toy.run(evaluator, 0, 1, 2).evaluate()
    return toy.folder / "ours" / "predictions"


def test_our_own_labels_are_of_the_class_list_beside_them(
    tool: ModuleType, toy: Toy, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dataset's labels were made anew with other ids: both sides mean something else by 7."""
    (before := toy.folder / "before.json").write_text(toy.json.read_text())
    tree = json.loads(before.read_text())
    for entry in tree["classes"]:
        entry["id"] = IDS[(IDS.index(entry["id"]) + 1) % len(IDS)]
    write_json(toy.json, tree)
    values = np.arange(256, dtype=np.uint8)
    values[IDS] = np.roll(IDS, -1)
    for sample, label in zip(toy.samples, toy.labels, strict=True):
        Image.fromarray(values[label]).save(sample["sem_seg_file_name"])
    link = toy.folder / "link"
    link.symlink_to(ours / "labels")
    monkeypatch.chdir(ours / "labels")
    for path in (ours, ours / "labels", link, Path()):
        with pytest.raises(TagCLIPError, match=r"index\.json: found format 'png' and class list "):
            score(tool, toy, path)
    # Unless it is said.
    check(score(tool, toy, ours / "labels", "--classes", before), toy, guesses(toy))


@pytest.mark.parametrize("form", ["png", "json"])
def test_images_that_our_own_predictions_lack_are_named(
    tool: ModuleType, toy: Toy, form: str
) -> None:
    evaluator = toy.evaluator(output_dir=str(toy.folder / "ours"), save_predictions=form)
    toy.run(evaluator, 0, 1, 2).evaluate()
    folder = toy.folder / "ours" / "predictions"
    added = write_sample(toy.folder, "9", np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8))
    for path in (folder, *folder.glob("labels")):
        with pytest.raises(TagCLIPError) as caught:
            score(tool, toy, path)
        assert str(caught.value) == (
            f"{folder}: 1 of 4 images have no prediction, such as {added['file_name']}; evaluate "
            "again with TEST.SAVE_PREDICTIONS png"
        )


def bulk(toy: Toy, words: list[str], maps: dict[str, np.ndarray], form: str) -> Path:
    """The folder of a bulk run with a word list of its own, in two shards."""
    vocabulary = Vocabulary.from_names(words)
    rows = label_rows(maps, vocabulary)
    return write_segment_folder(toy.folder / "bulk", [rows[:1], rows[1:]], vocabulary, form)


@pytest.mark.parametrize("form", FORMATS)
def test_a_bulk_run(
    tool: ModuleType, toy: Toy, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of more images than the dataset has, and with pixels without a class."""
    if form == "parquet":
        pytest.importorskip("pyarrow")
    found = guesses(toy)
    found[0][:2] = -1
    order = np.array([*(THEIRS.index(name) for name in NAMES), -1])
    maps = {f"images/{i}.png": order[values] for i, values in enumerate(found)}
    folder = bulk(toy, THEIRS, {"more/x.png": found[0], **maps}, form)
    content = score(tool, toy, folder)
    check(content, toy, found)
    assert "1 rows are of no image of the dataset" in capsys.readouterr().out
    assert content["run"]["form"] == "bulk" and content["run"]["fingerprints"] == {}


@pytest.mark.parametrize(
    ("words", "names", "error"),
    [
        (NAMES, ["0.png", "1.png"], "1 of 3 images have no row, such as .*2.png"),
        (NAMES, ["0.png", "x/1.png", "y/1.png", "2.png"], "x/1.png and y/1.png both may be"),
        ([*NAMES, "hat"], ["0.png", "1.png", "2.png"], "vocabulary.json: found 'hat', no class of"),
        (NAMES, ["2.png", "0.png", "1.png"], "0.png: found 12x4 pixels .*, expected 7x9"),
    ],
)
def test_a_bulk_run_of_something_else(
    tool: ModuleType, toy: Toy, words: list[str], names: list[str], error: str
) -> None:
    maps = dict(zip(names, [*guesses(toy), guesses(toy)[0]], strict=False))
    folder = bulk(toy, words, maps, "webdataset")
    with pytest.raises(TagCLIPError, match=error) as caught:
        score(tool, toy, folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("form", "words", "readers"),
    [
        *(("saved", [f"--{name}", value], "") for name, value in (
            ("classes", "c.txt"), ("values", "ids"), ("extra-classes", "refuse"),
            ("suffix", "_pred"), ("merge", "last"), ("background", "cat"),
            ("coco-images", "c.json"),
        )),
        ("bulk", ["--classes", "c.txt"], "a COCO json or label files or arrays"),
        ("bulk", ["--merge", "highest-score"], "a COCO json"),
        ("coco", ["--suffix", "_pred"], "label files or arrays"),
        ("files", ["--coco-images", "c.json"], "a COCO json"),
        ("files", ["--extra-classes", "other", "--background", "cat"], "a COCO json"),
    ],
)  # fmt: skip
def test_an_option_that_the_form_does_not_read_is_refused(
    tool: ModuleType, toy: Toy, form: str, words: list[str], readers: str, request: Any
) -> None:
    """Also with the value that it has without being given."""
    path = toy.folder / "theirs"
    if form == "saved":
        path = request.getfixturevalue("ours")
    elif form == "bulk":
        path = bulk(toy, NAMES, {f"{i}.png": v for i, v in enumerate(guesses(toy))}, "webdataset")
    elif form == "coco":
        path = coco(toy, [])
    else:
        # Before it is said that others are missing.
        write(path, [np.array(IDS, np.uint8)[values] for values in guesses(toy)][:1], ".png")
    option, noun = words[-2], tool.FORMS[form][0]
    with pytest.raises(TagCLIPError) as caught:
        score(tool, toy, path, *words)
    found = str(caught.value)
    assert found.startswith(f"{option}: found {noun} in {path}, expected {readers}")
    assert found.endswith(f"; leave {option} out") and "\n" not in found
    with pytest.raises(TagCLIPError, match="no such folder"):
        score(tool, toy, toy.folder / "nowhere", "--merge", "last")


@pytest.mark.parametrize(
    "key",
    [
        *("SOLVER.MAX_ITER", "OUTPUT_DIR", "MODEL.TAGCLIP.TEST.SEEN_BIAS", "MODEL.WEIGHTS"),
        *("INPUT.MIN_SIZE_TEST", "SEED", "TEST.SAVE_LOGITS", "DATASETS.ZERO_SHOT.SETTING"),
        *("DATASETS.TRAIN", "DATALOADER.NUM_WORKERS"),
    ],
)
def test_keys_that_no_score_reads_are_refused(tool: ModuleType, key: str) -> None:
    read = ["DATASETS.ZERO_SHOT.SPLIT", "a", "DATASETS.FOLDER_DATASETS", "[]", "PROJECTS", "[]"]
    assert tool.parse_args(["p", "--dataset", "d", *read]).opts == read
    assert exit_of(tool.parse_args, ["p", "--dataset", "d", *read, key, "1"]) == 2


def coco(toy: Toy, rows: list[dict[str, Any]], name: str = "results.json", **more: Any) -> Path:
    return write_json(toy.folder / name, {"annotations": rows, **more} if more else rows)


def encoded(mask: np.ndarray) -> dict[str, Any]:
    segment = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return segment | {"counts": segment["counts"].decode()}


@pytest.fixture
def rows(toy: Toy) -> list[dict[str, Any]]:
    """Results of all images, by numbers that are the names of the images."""
    return [
        {"image_id": i, "category_id": IDS[k], "segmentation": encoded(v == k), "score": 0.5}
        for i, v in enumerate(guesses(toy))
        for k in np.unique(v).tolist()
    ]


def test_a_whole_coco_json_has_numbers_of_its_own(
    tool: ModuleType, toy: Toy, rows: list[dict[str, Any]]
) -> None:
    check(score(tool, toy, coco(toy, rows)), toy, guesses(toy))
    names = [{"id": 10 + k, "name": name} for k, name in enumerate(NAMES)]
    images = [{"id": 40 + i, "file_name": f"val/{i}.png"} for i in range(3)]
    for row in rows:
        row["category_id"] = 10 + IDS.index(row["category_id"])
        row["image_id"] += 40
    path = coco(toy, rows, "whole.json", categories=names, images=images)
    check(score(tool, toy, path), toy, guesses(toy))


IMAGES = [{"id": i, "file_name": f"{i}.png"} for i in range(3)]
MISLEADING: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[str]]] = {
    "nan": ("found nan as score", {"score": math.nan}, {}, []),
    "another name": ("image 'x.png', which the dataset has not", {"file_name": "x.png"}, {}, []),
    "category list": ("found no COCO results .*category_id", {"category_id": [1]}, {}, []),
    "image list": ("found no COCO results .*image_id", {"image_id": [1]}, {}, []),
    "no class name": ("'name'", {}, {"categories": [{"id": 7}], "images": IMAGES}, []),
    "no file name": ("'file_name'", {}, {"images": [{"id": 0}]}, []),
    "two classes, one id": (
        "an id of two categories",
        {},
        {"categories": [{"id": 7, "name": "cat"}, {"id": 7, "name": "dog"}], "images": IMAGES},
        [],
    ),
    "two images, one name": (
        "several images called as .*0.png",
        {},
        {"images": [*IMAGES, {"id": 9, "file_name": "other/0.png"}]},
        [],
    ),
    "background": ("--background names 'dogs', no class; did you mean dog", {}, {},
                   ["--background=dogs"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", MISLEADING)
def test_what_misleads_is_refused(
    tool: ModuleType, toy: Toy, rows: list[dict[str, Any]], fault: str
) -> None:
    message, change, more, words = MISLEADING[fault]
    rows[-1] |= change
    with pytest.raises(TagCLIPError, match=message) as caught:
        score(tool, toy, coco(toy, rows, **more), *words)
    assert "\n" not in str(caught.value)


def test_images_without_masks_are_counted_and_said(
    tool: ModuleType, toy: Toy, rows: list[dict[str, Any]]
) -> None:
    path = coco(toy, [row for row in rows if row["image_id"] != 1])
    content = score(tool, toy, path)
    assert content["run"]["images_without_masks"] == 1
    assert "1 of 3 images have no mask in the json" in tool.notes(ClassMatch({}), content)
    with pytest.raises(TagCLIPError, match="found no result of an image of the dataset"):
        score(tool, toy, coco(toy, []))


def test_converted_predictions_are_read_by_the_list_beside_them(
    repository: Path, tool: ModuleType, toy: Toy
) -> None:
    """labels convert writes an index.json, as an evaluation does, and 255 where nothing is."""
    found = guesses(toy)
    found[0][:2] = -1
    colors = np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9], [9, 9, 0], [0, 9, 9], [0, 0, 0]], np.uint8)
    write(toy.folder / "painted", [colors[values] for values in found], ".png")
    lines = [f"{n},{r},{g},{b}" for n, (r, g, b) in zip(NAMES, colors[:5].tolist(), strict=True)]
    table = toy.folder / "colors.csv"
    table.write_text("\n".join(["name,r,g,b", *lines[::-1], "ignore,0,0,0"]) + "\n")
    convert = load_tool(repository / "tools" / "convert_labels.py")
    output = toy.folder / "converted"
    words = [toy.folder / "painted", "--classes", table, "--output", output, "--workers", 1]
    convert.main(convert.parse_args(list(map(str, words))))
    content = score(tool, toy, output)
    check(content, toy, found)
    assert content["run"]["class_list"] == "vocabulary.json"
    labelled = (toy.labels[0][:2] != IGNORE).sum()
    assert sum(row["other"] for row in content["classes"]) == labelled


@pytest.mark.slow
def test_the_commands_of_the_docs(repository: Path, tiny_cfg: CfgNode, tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path)
    entry = {
        "name": "mine_val",
        "images": f"{tmp_path}/images/val",
        "labels": f"{tmp_path}/labels/val",
        "vocabulary": str(write_json(tmp_path / "mine.json", tiny_tree())),
    }
    keys = ("DATASETS.FOLDER_DATASETS", [entry], "DATASETS.TEST", ("mine_val",))
    cfg = changed(tiny_cfg, *keys, "DATASETS.TRAIN", ("mine_val",))
    (tmp_path / "mine.yaml").write_text(cfg.dump())
    (tmp_path / "theirs.txt").write_text("\n".join(THEIRS))
    (tmp_path / "theirs").mkdir()
    rows = []
    for path in sorted((tmp_path / "labels" / "val").iterdir()):
        labels = np.array(Image.open(path))
        labels[labels == 255] = 0
        Image.fromarray(as_theirs([labels])[0]).save(tmp_path / "theirs" / path.name)
        rows += [
            {"image_id": int(path.stem), "category_id": k, "segmentation": encoded(labels == k)}
            for k in np.unique(labels).tolist()
        ]
    write_json(tmp_path / "results.json", rows)
    page = (repository / "docs" / "scores.md").read_text()
    run_blocks([shell_blocks(page)[0]._replace(why_not="")], tmp_path, "docs/scores.md")
    for name in ("theirs", "coco"):
        (path,) = (tmp_path / "out" / name).glob("inference/*/metrics.json")
        assert json.loads(path.read_text())["metrics"]["mIoU"] == 100
    assert (tmp_path / "out" / "compared" / "mine_val.md").is_file()


def test_scores_of_one_class_decide_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 4, 5)))
    files = PredictionFiles({"a.jpg": tmp_path / "a.npy"}, ClassMatch({7: 0, 255: -1}), (7,))
    with pytest.raises(TagCLIPError, match="for one class.*write labels") as error:
        files.read("a.jpg", (4, 5))
    assert "\n" not in str(error.value)
    labels = np.array([[7, 255], [255, 7]])
    np.save(tmp_path / "a.npy", labels)
    assert files.read("a.jpg", (2, 2)).tolist() == [[0, -1], [-1, 0]]
