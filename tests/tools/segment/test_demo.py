"""tools/demo.py: pictures, label files and json of any input, and what it says about bad ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.demo_tool import WORDS, save
from helpers.pictures import picture, video
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import changed, exit_of
from helpers.toy_dataset import forget
from PIL import Image
from pycocotools.coco import COCO

from tagclip import TagCLIPPredictor, register_zero_shot_sem_seg
from tagclip.demo import images
from tagclip.demo.media import find_images
from tagclip.errors import CheckpointError, ConfigError, TagCLIPError
from tagclip.utils.cli import run_tool
from tagclip.visualization.panels import fit


def test_picture_labels_and_json_hold_the_prediction(
    run: Callable, weights: Path, tmp_path: Path
) -> None:
    image = save(tmp_path / "in" / "a.b.png")
    assert run("--input", image, "--save-labels", "--json", tmp_path / "r.json") == 0
    predictor = TagCLIPPredictor.from_checkpoint(weights)
    predictor.set_vocabulary(["cat", "zebra", "sky"])
    expected = predictor(picture())
    labels = expected["sem_seg_labels"].numpy()
    page = np.array(Image.open(tmp_path / "out" / "a.b.png"))
    panel = fit(picture()[:, :, ::-1], 512)
    assert panel.shape == (366, 512, 3)
    for name, level in (("a.b.png", 0), ("a.b_labels.png", 2)):
        content = (tmp_path / "out" / name).read_bytes()
        # Of zlib: 0 is its fastest, 2 its default.
        assert content[content.index(b"IDAT") + 5] >> 6 == level
    windows = np.lib.stride_tricks.sliding_window_view(page, panel.shape)[10:50, :20, 0]
    assert (windows == panel).all((2, 3, 4)).sum() == 1
    written = Image.open(tmp_path / "out" / "a.b_labels.png")
    assert written.mode == "P" and (np.array(written) == labels).all()
    colors = np.array(written.convert("RGB")).reshape(-1, 3)
    assert (colors == predictor.vocabulary.colors[labels.ravel()]).all()
    (entry,) = json.loads((tmp_path / "r.json").read_text())["images"]
    assert (entry["file"], entry["height"], entry["width"]) == (str(image), 40, 56)
    assert [row["seen"] for row in entry["classes"]] == [
        r["name"] == "cat" for r in entry["classes"]
    ]
    shares = [row["share"] for row in entry["classes"]]
    assert shares == sorted(shares, reverse=True) and entry["other"] == 0
    scores = expected["sem_seg_scores"].float().numpy()
    for row in entry["classes"]:
        mask = labels == ["cat", "zebra", "sky"].index(row["name"])
        assert row["share"] == pytest.approx(mask.mean(), abs=1e-6)
        assert row["mean_score"] == pytest.approx(scores[mask].mean(), abs=1e-3)


def test_the_json_opens_with_pycocotools(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Also when two runs with other words share it."""
    images = [save(tmp_path / f"{name}.png", picture(seed=ord(name))) for name in "ab"]
    common = ["--save-labels", "--json", tmp_path / "r.json"]
    assert run("--input", images[0], *common) == 0
    assert run("--input", images[1], *common, words=("--vocab", "grass,sky,cat")) == 0
    # Finished pictures keep their entries.
    for _ in range(2):
        assert run("--input", images[0], *common) == 0
    coco = COCO(str(tmp_path / "r.json"))
    capsys.readouterr()
    names = {row["id"]: row["name"] for row in coco.loadCats(coco.getCatIds())}
    assert names == {0: "grass", 1: "sky", 2: "cat", 3: "zebra"}
    assert [row["file_name"] for row in coco.loadImgs([1, 2])] == list(map(str, images))
    asked = [["cat", "zebra", "sky"], ["grass", "sky", "cat"]]
    for (number, image), words in zip(coco.imgs.items(), asked, strict=True):
        labels = np.array(Image.open(image["labels"]))
        rows = coco.loadAnns(coco.getAnnIds(imgIds=number))
        shares = {row["name"]: row["share"] for row in image["classes"]}
        assert {names[row["category_id"]] for row in rows} == shares.keys()
        for row in rows:
            name = names[row["category_id"]]
            assert (coco.annToMask(row) == (labels == words.index(name))).all()
            assert row["area"] / labels.size == pytest.approx(shares[name], abs=1e-6)
    (tmp_path / "r.json").write_text('{"images": [{"file": "a.png"}]}')
    with pytest.raises(ConfigError, match="found another kind of file") as error:
        run("--input", images[0], *common)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ids", "ignored", "mode"),
    [((1, 2, 3), 0, "P"), ((7, 254, 0), 255, "P"), ((9, 300, 65535), 255, "I;16")],
)
def test_labels_and_json_have_the_ids_of_the_class_list(
    run: Callable, weights: Path, tmp_path: Path, ids: tuple, ignored: int, mode: str
) -> None:
    """Also where other words have renumbered the categories of the json."""
    names = ["cat", "zebra", "sky"]
    rows = [{"id": value, "name": name} for value, name in zip(ids, names, strict=True)]
    content = {"format": 1, "name": "mine", "ignore_label": ignored, "classes": rows}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    register_zero_shot_sem_seg("mine_val", tmp_path, tmp_path, tmp_path / "mine.json")
    image, result = save(tmp_path / "a.png"), tmp_path / "r.json"
    options = ["--input", image, "--save-labels", "--json", result, "--context", "grass,dog"]
    try:
        assert run(*options, words=("--vocab-from-dataset", "mine_val")) == 0
    finally:
        forget("mine_val")
    predictor = TagCLIPPredictor.from_checkpoint(weights)
    predictor.set_vocabulary(names, context=["grass", "dog"])
    indices = predictor(picture())["sem_seg_labels"].numpy()
    with Image.open(tmp_path / "out" / "a_labels.png") as written:
        assert written.mode == mode
        labels = np.array(written)
    assert (labels == np.array([*ids, ignored])[indices]).all() and indices.min() == -1
    content = json.loads(result.read_text())
    found = {row["id"]: row["name"] for row in content["categories"]}
    assert found == dict(zip(ids, names, strict=True))
    (entry,) = content["images"]
    assert entry["ignore_label"] == ignored and entry["classes"]
    for row in entry["classes"]:
        assert row["share"] == pytest.approx((labels == row["id"]).mean(), abs=1e-6)
        assert row["id"] == ids[names.index(row["name"])]
    assert entry["other"] == pytest.approx((labels == ignored).mean(), abs=1e-6)
    save(tmp_path / "b.png")
    words = ("--vocab", "sky,tree,zebra,car")
    assert run("--input", tmp_path / "b.png", *options[2:], words=words) == 0
    b, a = json.loads(result.read_text())["images"]
    assert a == entry | {"id": 2} and b["ignore_label"] == 255
    labels = np.array(Image.open(tmp_path / "out" / "b_labels.png"))
    for row in b["classes"]:
        assert row["id"] == ["sky", "tree", "zebra", "car"].index(row["name"])
        assert row["share"] == pytest.approx((labels == row["id"]).mean(), abs=1e-6)


def test_entries_go_with_the_files_that_another_input_replaces(
    run: Callable, tmp_path: Path
) -> None:
    """Files of one name in two folders, images and videos."""
    result = tmp_path / "r.json"
    options = ["--save-labels", "--json", result]
    common = save(tmp_path / "c.png")
    for folder, shape in (("a", (40, 50)), ("b", (30, 60))):
        image = save(tmp_path / folder / "x.png", picture(*shape))
        # The second is refused unless it is told.
        told = ["--overwrite"] * (folder == "b")
        assert run("--input", image, common, *options, *told) == 0
    found = {row["file"] for row in json.loads(result.read_text())["images"]}
    assert found == {str(common), str(tmp_path / "b" / "x.png")}
    # Without files of its own an entry stands for itself.
    assert run("--input", tmp_path / "a" / "x.png", "--json", result, "--no-draw") == 0
    assert len(json.loads(result.read_text())["images"]) == 3
    for path in (video(tmp_path / "a" / "v.avi"), tmp_path / "b" / "v.avi"):
        if not path.exists():
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 70))
            for seed in (7, 8):
                writer.write(picture(70, 96, seed))
            writer.release()
        told = ["--overwrite"] * (path.parent.name == "b")
        assert run("--video-input", path, *options, "--no-draw", *told) == 0
    rows = [row for row in json.loads(result.read_text())["images"] if "frame" in row]
    assert {(row["file"], row["frame"]) for row in rows} == {(str(path), 0), (str(path), 1)}
    assert all(Path(row["labels"]).is_file() for row in rows)


def test_scores_that_are_no_numbers_end_the_run(
    run: Callable, tmp_path: Path, tiny_cfg: CfgNode, capsys: pytest.CaptureFixture
) -> None:
    """Of weights that are finite in the file."""
    image = save(tmp_path / "a.png")
    path = tmp_path / "output" / "model_final.pth"
    content = torch.load(path, weights_only=True)
    state = content["model"]
    name = next(key for key in state if key.endswith("norm.weight") and "head" in key)
    content["model"] = state | {name: torch.full_like(state[name], 3e38)}
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="found nan in the score, expected numb"):
        run("--input", image, "--no-draw", "--save-labels")
    assert not list((tmp_path / "out").glob("*"))
    content["model"] = state | {name: torch.full_like(state[name], 1e300, dtype=torch.float64)}
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"values that are not finite in {name}"):
        run("--input", image, "--no-draw", "--save-labels")


def test_a_link_to_itself_or_to_nothing_is_named_and_the_others_are_done(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "c.png"):
        save(tmp_path / "in" / name)
    (tmp_path / "in" / "b.png").symlink_to("b.png")
    (tmp_path / "in" / "d.png").symlink_to("nowhere.png")
    assert run("--input", tmp_path / "in") == 1
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "c.png"]
    said = "".join(capsys.readouterr())
    assert str(tmp_path / "in" / "b.png") in said and str(tmp_path / "in" / "d.png") in said


def test_names_of_any_length_that_the_file_system_takes(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of labels are longer: that image is named, and the others are done."""
    names = ["b" * 251, "é" * 125 + "e", "c"]
    for name in names:
        save(tmp_path / "in" / f"{name}.png")
    assert run("--input", tmp_path / "in") == 0
    assert set(os.listdir(tmp_path / "out")) == {f"{name}.png" for name in names}
    assert run("--input", tmp_path / "in", "--no-draw", "--save-labels") == 1
    assert set(os.listdir(tmp_path / "out")) == {f"{n}.png" for n in names} | {"c_labels.png"}
    assert capsys.readouterr().err.count("shorten the name of the image") == 2


def test_context_and_background_become_the_ignore_label(run: Callable, tmp_path: Path) -> None:
    image = save(tmp_path / "a.png")
    common = ["--input", image, "--save-labels", "--json", tmp_path / "r.json"]
    assert run(*common, "--background", "--context", "grass, dog") == 0
    labels = np.array(Image.open(tmp_path / "out" / "a_labels.png"))
    (entry,) = json.loads((tmp_path / "r.json").read_text())["images"]
    assert 0 < entry["other"] == pytest.approx((labels == 255).mean(), abs=1e-6)
    assert run(*common, "--background", "1.0") == 0
    assert (np.array(Image.open(tmp_path / "out" / "a_labels.png")) == 255).all()


def test_many_classes_need_16_bit_labels(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\n".join(f"word {i}" for i in range(300)) + "\n\n")
    words = ("--vocab-file", str(tmp_path / "words.txt"))
    assert run("--input", save(tmp_path / "a.png"), "--save-labels", words=words) == 0
    assert np.array(Image.open(tmp_path / "out" / "a_labels.png")).dtype == np.uint16


def test_bad_files_are_listed_and_the_others_drawn(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("a.png", "c.png"):
        save(tmp_path / "in" / name)
    (tmp_path / "in" / "b.jpg").write_bytes(b"<html></html>")
    assert run("--input", tmp_path / "in") == 1
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "c.png"]
    output = capsys.readouterr()
    assert "1 of 3 images failed:" in output.err and "html or xml" in output.err
    assert "2 images in" in output.out and "images/s" in output.out


def test_finished_pictures_stay_until_something_changes(run: Callable, tmp_path: Path) -> None:
    image, out = save(tmp_path / "a.png"), tmp_path / "out" / "a.png"
    result = tmp_path / "r.json"

    def is_redone(*more: Any) -> bool:
        os.utime(out, ns=(1, 1))
        assert run("--input", image, *more) == 0
        return out.stat().st_mtime_ns != 1

    assert run("--input", image) == 0
    assert not is_redone()
    assert is_redone("--overwrite")
    assert is_redone("--context", "dog")
    assert is_redone("MODEL.TAGCLIP.TEST.SEEN_BIAS", "0.3")
    save(image, picture(seed=5))
    assert is_redone("MODEL.TAGCLIP.TEST.SEEN_BIAS", "0.3")
    assert is_redone("--save-labels") and not is_redone("--save-labels")
    assert is_redone("--json", result) and not is_redone("--json", result)
    assert len(json.loads(result.read_text())["images"]) == 1
    out.write_bytes(b"damaged")
    assert is_redone("--json", result)


def test_an_image_does_not_replace_the_picture_of_another_of_its_name(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for folder, seed in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "x.png", picture(seed=seed))
    save(tmp_path / "b" / "y.png")
    out = tmp_path / "out"
    assert run("--input", tmp_path / "a", "--save-labels") == 0
    first = {path: path.read_bytes() for path in out.iterdir()}
    assert run("--input", tmp_path / "b", "--save-labels") == 1
    said = f"{tmp_path}/b/x.png: found {out}/x.png, which is of another image of this name"
    assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in first} == first and (out / "y.png").is_file()
    # What moved without a change is still finished, and what changes in its place is redone.
    (tmp_path / "a").rename(tmp_path / "c")
    assert run("--input", tmp_path / "c", "--save-labels") == 0
    assert {path: path.read_bytes() for path in first} == first
    assert run("--input", tmp_path / "b", "--save-labels", "--overwrite") == 0
    replaced = {path: path.read_bytes() for path in first}
    assert all(replaced[path] != first[path] for path in first)
    save(tmp_path / "b" / "x.png", picture(seed=3))
    assert run("--input", tmp_path / "b", "--save-labels") == 0
    assert (out / "x.png").read_bytes() != replaced[out / "x.png"]


def test_a_picture_does_not_stand_beside_labels_of_another_image(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for folder, seed in (("a", 1), ("b", 2)):
        save(tmp_path / folder / "x.png", picture(seed=seed))
    assert run("--input", tmp_path / "a", "--save-labels", "--no-draw") == 0
    assert run("--input", tmp_path / "b") == 1
    said = f"{tmp_path}/b/x.png: found {tmp_path}/out/x_labels.png, which is of another image of"
    assert said in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["x_labels.png"]


def test_two_images_of_one_name_size_and_time_are_two(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As frames that no format compresses, out of archives; the json knows images as typed."""
    for site, seed in (("a", 1), ("b", 2)):
        path = tmp_path / site / "photos" / "x.bmp"
        path.parent.mkdir(parents=True)
        Image.fromarray(picture(seed=seed)).save(path)
        os.utime(path, ns=(10**18, 10**18))
    first = run("--input", tmp_path / "a" / "photos", "--save-labels")
    labels = (tmp_path / "out" / "x_labels.png").read_bytes()
    assert first == 0 and run("--input", tmp_path / "b" / "photos", "--save-labels") == 1
    assert "which is of another image of this name" in capsys.readouterr().err
    assert (tmp_path / "out" / "x_labels.png").read_bytes() == labels
    words = ("--input", "photos", "--no-draw", "--json", tmp_path / "all.json")
    ends = []
    for site in ("a", "b", "a"):
        monkeypatch.chdir(tmp_path / site)
        ends.append(run(*words))
    assert ends == [0, 1, 0]
    assert f"found an entry in {tmp_path}/all.json, which is of ano" in capsys.readouterr().err
    (image,) = json.loads((tmp_path / "all.json").read_text())["images"]
    assert image["file"] == "photos/x.bmp"


@pytest.mark.parametrize("kind", ["one", "strip", "gray", "alpha", "sixteen", "exif"])
def test_odd_images(run: Callable, tmp_path: Path, kind: str) -> None:
    path, rgb, exif = tmp_path / "a.png", Image.fromarray(picture()), Image.Exif()
    size = {"one": (1, 1), "strip": (1, 300), "exif": (56, 40)}.get(kind, (40, 56))
    if kind in ("one", "strip"):
        rgb = rgb.crop((0, 0, size[1], size[0]))
    elif kind == "exif":
        exif[0x0112] = 6
    elif kind == "sixteen":
        rgb = Image.fromarray(np.array(rgb.convert("L")).astype(np.uint16) * 257)
    elif kind == "gray":
        rgb = rgb.convert("L")
    elif kind == "alpha":
        rgb.putalpha(0)
    rgb.save(path, exif=exif)
    assert run("--input", path, "--save-labels") == 0
    assert np.array(Image.open(tmp_path / "out" / "a_labels.png")).shape == size


def test_two_processes_draw_what_one_draws(
    demo: ModuleType, tiny_cfg: CfgNode, tiny_vocabulary_json: str, tmp_path: Path, monkeypatch: Any
) -> None:
    # A dataset that the other processes find in the config.
    entry = {"name": "folder_of_demo", "images": "i", "labels": "l"}
    entry["vocabulary"] = tiny_vocabulary_json
    cfg = changed(tiny_cfg, "DATASETS.FOLDER_DATASETS", [entry], "DATASETS.TRAIN", [entry["name"]])
    weights = save_tiny(changed(cfg, "DATASETS.TEST", ()), tmp_path / "output")
    for name in ("a.png", "b.png"):
        save(tmp_path / "in" / name, picture(seed=ord(name[0])))
    (tmp_path / "in" / "bad.png").write_bytes(b"")
    # They import the tool by its name.
    monkeypatch.syspath_prepend(str(Path(demo.__file__).parent))
    monkeypatch.setitem(sys.modules, "demo", demo)
    found = []
    for processes in ("1", "2"):
        out = tmp_path / processes
        arguments = ["--weights", str(weights), "--input", str(tmp_path / "in"), "--processes"]
        assert demo.main(demo.parse_args([*arguments, processes, "--output", str(out)])) == 1
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[1] and sorted(found[0]) == ["a.png", "b.png"]


def test_the_last_checkpoint_of_a_config_is_taken(
    demo: ModuleType, tiny_cfg: CfgNode, weights: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "c.yaml").write_text(tiny_cfg.dump())
    image = save(tmp_path / "a.png")
    common = ["--config-file", str(tmp_path / "c.yaml"), "--input", str(image), "--output"]
    assert demo.main(demo.parse_args([*common, str(tmp_path / "x.png"), "--vocab", "cat,dog"])) == 0
    assert f"Weights: {weights}, the last of OUTPUT_DIR" in capsys.readouterr().out
    assert Image.open(tmp_path / "x.png").width > 1000
    (weights.parent / "last_checkpoint").unlink()
    message = exit_of(run_tool, demo.run, demo.parse_args([*common, str(tmp_path / "y.png")]))
    assert "holds no last_checkpoint" in message and "tagclip minibench" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "nowhere/*.png"], "no such file, folder or match"),
        (["--input", "x.mp4", "a.png"], "expected one video alone"),
        (["--input", "x.mp4"], "no such video"),
        (["--webcam", "--output", "x.wmv"], "camera 0: cannot be opened"),
        (["--input", "a.png", "--num-gpus", "99"], "found . GPUs"),
        (["--input", "a.png", "--no-draw"], "--no-draw: found neither --save-labels nor --json"),
        (["--webcam", "--no-draw"], "--no-draw: found neither --save-labels nor --json"),
    ],
)
def test_mistakes_are_one_line(run: Callable, arguments: list[str], message: str) -> None:
    with pytest.raises(TagCLIPError, match=message) as error:
        run(*arguments)
    assert "\n" not in str(error.value)


def test_options_of_detectron2(demo: ModuleType, tmp_path: Path) -> None:
    common = ["--config-file", "c.yaml", "--output", "out"]
    pairs = ["MODEL.WEIGHTS", "w.pth", "INPUT.FORMAT", "RGB"]
    for more in (pairs, ["--opts", *pairs], ["--confidence-threshold", "0.3", "--opts", *pairs]):
        args = demo.parse_args(["--input", "a.png", "b.png", *common, *more])
        assert (args.input, args.opts) == (["a.png", "b.png"], pairs)
        assert args.background == (0.3 if len(more) > 5 else None)
    args = demo.parse_args(["--video-input", "street.bin", *common, "--opts", *pairs])
    assert (args.input, args.opts, args.webcam) == (["street.bin"], pairs, False)
    for more in (["--webcam"], ["--input", "a.png"], []):
        words = ["--video-input", "street.bin", *more] if more else []
        assert exit_of(demo.parse_args, [*common, *words]) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["auto"], ("auto", 0)),
        (["0.2"], ("threshold", 0.2)),
        (["0"], ("threshold", 0)),
        ([], ("threshold", 0.1)),
    ],
)
def test_one_way_to_find_what_is_other_takes_the_place_of_another(
    demo: ModuleType, tiny_cfg: CfgNode, tmp_path: Path, words: list[str], expected: tuple
) -> None:
    key = "MODEL.TAGCLIP.TEST.BACKGROUND"
    opts = [key, "auto", f"{key}_THRESHOLD", "0.7"]
    config = tmp_path / "config.yaml"
    config.write_text(changed(tiny_cfg, *opts).dump())
    common = ["--config-file", str(config), "--vocab", "cat"]
    args = demo.parse_args(["--input", "a.png", *common, "--background", *words])
    test = demo.build_config(args, []).MODEL.TAGCLIP.TEST
    found = test.BACKGROUND, test.BACKGROUND_THRESHOLD
    assert found == expected
    # On one command line both cannot be meant.
    for pair in (opts[:2], opts[2:]):
        args = demo.parse_args(["--input", "a.png", *common, "--background", *words, *pair])
        with pytest.raises(ConfigError, match=f"--background: found .* and {pair[0]}, expected"):
            demo.build_config(args, [])
    assert exit_of(demo.parse_args, ["--input", "a.png", *common, "--background", "none"]) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--no-draw", "--json", "a.json", "--panel-size", "512"],
        ["--panel-size", "23"],
        ["--num-gpus", "2", "--workers", "3"],
        ["--weights", "a.pth", "MODEL.WEIGHTS", "b.pth"],
        ["TEST.SAVE_LOGITS", "True"],
        ["--opts", "MODEL.DEVICE", "cpu", "TEST.EXPECTED_RESULTS", "[]"],
        ["SOLVER.IMS_PER_BATCH", "3"],
        ["INPUT.CROP.SIZE", "[64, 64]"],
        ["MODEL.TAGCLIP.LOSS.DICE", "2"],
    ],
)
def test_what_does_nothing_is_refused(demo: ModuleType, words: list[str]) -> None:
    assert exit_of(demo.parse_args, ["a.png", *words]) == 2
    kept = ["--panel-size", "24", "INPUT.MIN_SIZE_TEST", "64", "TEST.DTYPE", "bfloat16"]
    assert demo.parse_args(["a.png", *kept]).opts == kept[2:]


@pytest.mark.parametrize("option", ["--workers 2", "--num-gpus 1"])
@pytest.mark.parametrize("source", ["v.avi", "--video-input v.avi", "--webcam"])
def test_what_is_of_images_is_refused_of_a_video(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, source: str
) -> None:
    monkeypatch.setattr(demo, "build_predictor", lambda *_: pytest.fail("the model is loaded"))
    monkeypatch.chdir(tmp_path)
    video(Path("v.avi"))
    named = "--webcam" if source == "--webcam" else "v.avi"
    match = f"{option.split()[0]}: found {named}, expected images: .* leave {option.split()[0]} out"
    with pytest.raises(ConfigError, match=match):
        demo.main(demo.parse_args([*source.split(), *option.split(), "--output", "o.mp4"]))


@pytest.mark.parametrize("source", ["a.png", "v.avi", "--webcam"])
def test_an_output_of_nothing_is_refused(demo: ModuleType, source: str) -> None:
    words = [source, "--no-draw", "--json", "a.json", "--output", "out"]
    with pytest.raises(ConfigError, match="--output: found out with --no-draw .*; leave it out"):
        demo.main(demo.parse_args(words))


def test_outputs_are_checked_before_the_model(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "build_predictor", lambda *_: pytest.fail("the model is loaded"))
    image, file = save(tmp_path / "a.png"), tmp_path / "file"
    file.touch()
    for words in (
        ["--output", file / "out"],
        ["--output", file],
        ["--output", tmp_path / "a.png" / "b.png"],
        ["--output", tmp_path / "out", "--json", tmp_path],
        ["--output", tmp_path / "out", "--json", file / "deep" / "r.json"],
    ):
        for source in (["--input", image], ["--webcam"]):
            if "--json" in words and "--webcam" in source:
                continue
            args = ["--weights", "none.pth", *source, *words]
            option, path = words[-2:]
            with pytest.raises(ConfigError) as error:
                demo.main(demo.parse_args(list(map(str, args))))
            assert str(error.value).startswith(f"{option} {path}: cannot be written (")
    assert sorted(os.listdir(tmp_path)) == ["a.png", "file"]


def test_nothing_replaces_another_file_of_the_run(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "build_predictor", lambda *_: pytest.fail("the model is loaded"))
    monkeypatch.chdir(tmp_path)
    video(Path("v.avi"))
    Path("link.avi").symlink_to("v.avi")
    save(Path("a.png"))
    save(Path("x/sub/a.png"))
    save(Path("y/sub/a.png"))
    save(Path("masks/b.png"))
    save(Path("masks/b_labels.jpg"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for words, message in (
        ("--video-input v.avi --output v.avi", "--output: v.avi would replace the video"),
        ("--video-input v.avi --output link.avi", "--output: link.avi would replace the video"),
        ("--input a.png --output ./a.png", "--output: a.png, of a.png, would replace an image"),
        ("--input x y/sub/a.png --output y", "--output: y/sub/a.png, of x/sub/a.png, would repl"),
        (
            "--input masks --save-labels --output o",
            "--output: o/b_labels.png would be written for masks/b.png and for masks/b_labels.jpg; "
            "segment one",
        ),
        ("--input a.png --output o --json a.png", "--json a.png: would replace"),
        ("--input a.png --output o --json o/a.png", "--json o/a.png: would replace"),
        ("--input a.png --output o --json o/a_labels.png", "--json o/a_labels.png: would replace"),
        ("--input v.avi --output o --json v.avi", "--json v.avi: would replace"),
        ("--input v.avi --output o --json o/v.mp4", "--json o/v.mp4: would replace"),
        (
            "--input v.avi --output o --save-labels --json o/v_labels/000003.png",
            "--json o/v_labels/000003.png: would replace",
        ),
        ("--input v.avi --output o/dir.with.dot", "--output o/dir.with.dot: expected a folder or"),
    ):
        with pytest.raises(ConfigError) as error:
            demo.main(demo.parse_args(["--weights", "none.pth", *words.split()]))
        assert str(error.value).startswith(message)
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*")}


@pytest.mark.parametrize(
    ("words", "shown", "output"),
    [
        ("--webcam", False, "segmented"),
        ("a.mp4", False, "segmented"),
        ("a.mp4", True, None),
        ("a.mp4 --save-labels", True, "segmented"),
        ("a.mp4 --no-draw --json r.json", False, None),
        ("a.png", True, "segmented"),
        ("a.png --no-draw --json r.json", True, None),
        ("a.png --no-draw --save-labels", True, "segmented"),
        ("a.png --output out", True, "out"),
    ],
)
def test_where_the_result_goes(
    demo: ModuleType,
    words: str,
    shown: bool,
    output: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    """Without --output into a window or a folder, which a line says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tagclip.demo.media.has_display", lambda: shown)
    asked = []
    for name in ("images.draw_images", "videos.draw_video"):
        monkeypatch.setattr(
            f"tagclip.demo.{name}", lambda args, *_: asked.append(args.output) or []
        )
    demo.main(demo.parse_args(words.split()))
    assert asked == [output and Path(output)]
    assert ("Output: segmented, as there is no" in capsys.readouterr().out) == (
        output == "segmented"
    )


def test_images_without_an_option(
    demo: ModuleType, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anywhere on the command line; as with --input."""
    args = demo.parse_args(
        ["a.png", "--vocab", "SEED", "b.png", "MODEL.DEVICE", "cpu", "--no-draw", "SEED.png"]
    )
    assert (args.input, args.vocab) == (["a.png", "b.png", "SEED.png"], "SEED")
    assert args.opts == ["MODEL.DEVICE", "cpu"]
    monkeypatch.chdir(tmp_path)
    save(Path("a.png"))
    words = ["--weights", str(weights), "--vocab", WORDS]
    assert demo.main(demo.parse_args([*words, "a.png"])) == 0
    assert demo.main(demo.parse_args([*words, "--input", "a.png", "--output", "out"])) == 0
    assert Path("segmented/a.png").read_bytes() == Path("out/a.png").read_bytes()


def test_the_model_of_minibench_is_taken(
    demo: ModuleType,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("a.png"))
    args = demo.parse_args(["a.png", "--vocab", WORDS])
    with pytest.raises(ConfigError, match="run tagclip minibench, or give --weights"):
        demo.main(args)
    assert not Path("segmented").exists()
    Path("output/minibench").mkdir(parents=True)
    weights.rename(demo.MINIBENCH)
    assert demo.main(args) == 0
    assert f"Weights: {demo.MINIBENCH}, as there is no --weights" in capsys.readouterr().out
    assert os.listdir("segmented") == ["a.png"]


def test_without_pictures_labels_and_json_are_the_same(
    run: Callable, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out, result = tmp_path / "out", tmp_path / "r.json"
    for seed, name in enumerate(("a.png", "sub/b.png")):
        save(tmp_path / "in" / name, picture(seed=seed))
    common = ["--input", tmp_path / "in", "--save-labels", "--json", result]
    assert run(*common) == 0
    drawn, labels = json.loads(result.read_text()), (out / "a_labels.png").read_bytes()
    result.unlink()
    shutil.rmtree(out)
    request.getfixturevalue("undrawn")
    assert run(*common, "--no-draw") == 0
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert files == ["a_labels.png", "sub/b_labels.png"]
    assert (out / "a_labels.png").read_bytes() == labels
    # What is finished is left as it is.
    os.utime(out / "a_labels.png", ns=(1, 1))
    assert run(*common, "--no-draw") == 0 and (out / "a_labels.png").stat().st_mtime_ns == 1
    for row in drawn["images"]:
        assert row.pop("picture")
    assert json.loads(result.read_text()) == drawn


def test_a_json_alone_needs_no_output(
    demo: ModuleType, weights: Path, tmp_path: Path, undrawn: None, capsys: Any
) -> None:
    result = tmp_path / "r.json"
    words = f"--weights {weights} --vocab cat,sky --no-draw --json {result} --input"
    image, film = save(tmp_path / "in" / "a.png"), video(tmp_path / "in" / "v.avi")
    for source, count, note in (
        (tmp_path / "in", 1, f"1 images in .*results in {result}"),
        (image, 1, "1 finished images were left"),
        (film, 7, "6 frames in"),
    ):
        assert demo.main(demo.parse_args([*words.split(), str(source)])) == 0
        assert re.search(note, capsys.readouterr().out)
        rows = json.loads(result.read_text())["images"]
        assert len(rows) == count and not any("picture" in row for row in rows)
    assert sorted(os.listdir(tmp_path / "in")) == ["a.png", "v.avi"]


def test_a_picture_that_is_asked_for_later_is_drawn(run: Callable, tmp_path: Path) -> None:
    common = ["--input", save(tmp_path / "a.png"), "--json", tmp_path / "r.json"]
    assert run(*common, "--no-draw") == 0 and not (tmp_path / "out").exists()
    assert run(*common) == 0 and os.listdir(tmp_path / "out") == ["a.png"]
    (row,) = json.loads((tmp_path / "r.json").read_text())["images"]
    assert row["picture"] == str(tmp_path / "out" / "a.png")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_whose_result_is_at_hand_when_a_signal_comes_is_listed_once(
    demo: ModuleType,
    run: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    monkeypatch.syspath_prepend(str(Path(demo.__file__).parent))
    monkeypatch.setitem(sys.modules, "demo", demo)
    for seed in range(6):
        save(tmp_path / "in" / f"{seed}.png", picture(seed=seed))
    write, calls = images.write_entries, []

    def interrupted(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*args)

    monkeypatch.setattr(images, "JSON_PERIOD", 1)
    monkeypatch.setattr(images, "write_entries", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        run("--input", tmp_path / "in", "--json", tmp_path / "r.json", "--workers", workers)
    made = sorted(os.listdir(tmp_path / "out"))
    rows = json.loads((tmp_path / "r.json").read_text())["images"]
    assert sorted(Path(row["picture"]).name for row in rows) == made
    assert str(caught.value).startswith(f"{len(made)} of 6 images are finished and stay")


@pytest.mark.parametrize("name", ["a.png", "v.avi"])
def test_a_model_that_cannot_be_loaded_writes_no_json(
    demo: ModuleType, tmp_path: Path, name: str
) -> None:
    path, result = tmp_path / name, tmp_path / "r.json"
    video(path) if name == "v.avi" else save(path)
    (tmp_path / "w.pth").write_bytes(b"no weights")
    words = ["--weights", tmp_path / "w.pth", "--output", tmp_path / "out", "--vocab", WORDS]
    words += ["--input", path, "--json", result]
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        demo.main(demo.parse_args(list(map(str, words))))
    assert not result.exists()


def test_pictures_keep_their_places_and_never_collide(tmp_path: Path) -> None:
    out = tmp_path / "in" / "out"
    for name in ("a.jpg", "a.png", "sub/a.png", "b.txt", ".hidden.png", "out/a.png"):
        save(tmp_path / "in" / name) if name[-1] == "g" else (tmp_path / "in" / name).touch()
    pairs = find_images([str(tmp_path / "in"), str(tmp_path / "in" / "*.jpg")], out)
    names = [(str(i.relative_to(tmp_path / "in")), str(p.relative_to(out))) for i, p in pairs]
    expected = [("a.jpg", "a.jpg.png"), ("a.png", "a.png.png"), ("sub/a.png", "sub/a.png")]
    assert sorted(names) == expected
    with pytest.raises(ConfigError, match="several images would be drawn as"):
        find_images([str(tmp_path / "in/a.png"), str(tmp_path / "in/sub/a.png")], out)
    (tmp_path / "films" / "sub").mkdir(parents=True)
    (tmp_path / "films" / "sub" / "my v.avi").touch()
    for text in ("films", "films/*/*"):
        with pytest.raises(ConfigError, match="found no image, but videos.*--video-input '.*my v"):
            find_images([str(tmp_path / text)], out)
    with pytest.raises(ConfigError, match="found 4 images for one file"):
        find_images([str(tmp_path / "in")], tmp_path / "x.png")


# Slow to import, and of no use to a mask.
NOT_FOR_A_MASK = [
    *("torch._dynamo", "torch._inductor", "sympy", "timm", "transformers"),
    "huggingface_hub.hf_api",
    *("open_clip.push_to_hf_hub", "matplotlib.figure", "detectron2.engine", "tensorboard"),
]


def test_a_mask_loads_nothing_that_it_does_not_need(
    weights: Path, repository: Path, tmp_path: Path
) -> None:
    words = ["segment", "--weights", str(weights), "--vocab", WORDS, str(save(tmp_path / "a.png"))]
    words += ["--output", str(tmp_path / "out")]
    code = f"import sys; from tagclip.cli import main; sys.argv = ['tagclip', *{words}]\n"
    code += f"try: main()\nfinally: print([m for m in {NOT_FOR_A_MASK} if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert not ended.returncode, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "out" / "a.png").is_file()
