"""Commands that write a folder for minutes: a second one there is refused and changes nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.bench import Bench, files_below, refused
from helpers.locks import at_work
from helpers.miniature_trees import make_voc, run_script, snapshot
from helpers.paths import REPOSITORY, TOOLS
from helpers.pictures import picture, video
from helpers.tiny_run import load_tool, own_loggers
from PIL import Image

from tagclip.utils.run_lock import RunLock

MINIBENCH = REPOSITORY / "projects" / "MiniBench"


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Bench:
    """The tools on a tiny dataset."""
    return Bench.of(request)


def words_of(script: str, bench: Bench) -> list[str]:
    """What a command is given besides its --output."""
    masks = bench.root / "masks"
    masks.mkdir()
    Image.fromarray(picture(70, 96)[:, :, 0]).save(masks / "a.png")
    config = ["--config-file", str(bench.config)]
    # Who is refused has not waited for anything: there is no such run, and no such model.
    if script == "compare_runs.py":
        return ["nowhere"]
    if script == "export_model.py":
        return ["--weights", "nowhere.pth", "--vocab", "cat, dog"]
    if script == "convert_labels.py":
        return [str(masks), "--threshold", "128"]
    if script == "export_predictions.py":
        labels = bench.root / "labels_of_masks"
        labels.mkdir()
        Image.fromarray(np.zeros((70, 96), np.uint8)).save(labels / "a.png")
        return [str(labels), "--images", str(masks), "--vocab", "cat, dog", "--to", "labelme"]
    if script == "fit_gate.py":
        return [*config, "--hold-out", "cat", "--dataset", bench.cfg.DATASETS.TRAIN[0]]
    return config if script == "visualize_data.py" else []


@pytest.mark.parametrize(
    "script",
    [
        TOOLS / "compare_runs.py",
        TOOLS / "convert_labels.py",
        TOOLS / "export_model.py",
        TOOLS / "export_predictions.py",
        TOOLS / "fit_gate.py",
        TOOLS / "visualize_data.py",
        MINIBENCH / "run_table.py",
        MINIBENCH / "compare_novelty.py",
        MINIBENCH / "train_clip.py",
    ],
    ids=lambda path: path.stem,
)
def test_a_second_one_is_refused(bench: Bench, script: Path) -> None:
    out = bench.root / "out"
    words = [str(script), *words_of(script.name, bench), "--output", str(out)]
    with own_loggers(), at_work(out) as process:
        bench.patch.setattr(sys, "argv", words)
        line = refused(load_tool(script).invoke_main)
        assert line.startswith(f"ConfigError: --output {out}: process {process.pid} on "), line
        assert list(files_below(out)) == [".lock"]


@pytest.mark.parametrize("option", ["", "--overwrite"])
def test_a_second_prepare_of_the_same_labels_is_refused(option: str, tmp_path: Path) -> None:
    """It leaves the files alone that the first has not named yet; other labels can be made."""
    make_voc(tmp_path)
    folder = tmp_path / "VOCdevkit" / "VOC2012" / "annotations_detectron2"
    options = ("--only", "voc2012_val", *filter(None, [option]))
    with at_work(folder / "val") as process:
        staged = folder / "val" / ".2007_000033.png.new.tmp"
        staged.write_bytes(b"of the first")
        with pytest.raises(SystemExit) as caught:
            run_script("prepare_voc", tmp_path, *options)
        line = f"ConfigError: --root {folder / 'val'}: process {process.pid} on "
        assert str(caught.value.code).startswith(line)
        assert list(files_below(folder)) == [f"val/{staged.name}", "val/.lock"]
        run_script("prepare_voc", tmp_path, "--only", "voc2012_train")
    run_script("prepare_voc", tmp_path, *options)
    assert not list(folder.rglob(".*"))


def test_finished_labels_are_checked_beside_another_prepare(tmp_path: Path) -> None:
    """Nothing is written then, until the other one has something beside them."""
    make_voc(tmp_path)
    folder = tmp_path / "VOCdevkit" / "VOC2012" / "annotations_detectron2" / "val"
    run_script("prepare_voc", tmp_path)
    before = snapshot(tmp_path)
    with at_work(folder) as process:
        run_script("prepare_voc", tmp_path)
        staged = folder / ".2007_000033.png.new.tmp"
        staged.write_bytes(b"of the other")
        with pytest.raises(SystemExit, match=f"process {process.pid} on .* is at work in this"):
            run_script("prepare_voc", tmp_path)
        assert staged.read_bytes() == b"of the other"
    run_script("prepare_voc", tmp_path)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["r.json", "out/v.mp4"])
def test_a_file_that_another_segment_writes_is_left_alone(bench: Bench, name: str) -> None:
    file = bench.root / name
    path = video(bench.root / "v.avi")
    words = ("--input", path, "--output", bench.root / "out", "--json", bench.root / "r.json")
    with RunLock(file.parent, file=file.name):
        line = bench.demo(*words)
    option = "--json" if name == "r.json" else "--output"
    assert line.startswith(f"ConfigError: {option} {file}: process {os.getpid()} on ")
    assert not (bench.root / "out" / "v.mp4").exists() and not list(bench.root.rglob(".*lock"))
    assert bench.demo(*words) == 0 and not list(bench.root.rglob(".*lock"))


@pytest.mark.parametrize("name", ["out", "out/a.png"])
def test_pictures_that_another_segment_writes_are_left_alone(bench: Bench, name: str) -> None:
    """Its labels would stand beside these pictures."""
    out, image = bench.root / name, bench.save_image("a.png")
    own = RunLock(out.parent, file=out.name) if out.suffix else RunLock(out)
    with own:
        for option in ("--workers=1", "--workers=2"):
            line = bench.demo(image, "--output", out, "--save-labels", option)
            assert line.startswith(f"ConfigError: --output {out}: process {os.getpid()} on "), line
        assert len(list((bench.root / "out").iterdir())) == 1
    assert bench.demo(image, "--output", out) == 0
    assert [path.suffix for path in (bench.root / "out").iterdir()] == [".png"]


def test_what_writes_other_files_may_go_on_beside_pictures(bench: Bench) -> None:
    out, image, clip = bench.root / "out", bench.save_image("a.png"), video(bench.root / "v.avi")
    with RunLock(out):
        assert bench.demo(clip, "--output", out) == 0
        assert bench.demo(image, "--no-draw", "--json", out / "r.json") == 0
        assert bench.demo(image, "--output", bench.root / "other") == 0
    assert sorted(path.name for path in out.iterdir()) == ["r.json", "v.mp4"]


@pytest.mark.parametrize("json", ["new/r.json", "new/out/r.json", "new/out/sub/r.json"])
def test_a_run_that_wrote_nothing_leaves_no_folder(bench: Bench, json: str) -> None:
    words = (bench.save_image("a.png"), "--output", "new/out", "--json", json)
    bench.patch.chdir(bench.root)
    line = bench.demo(*words, "--weights", "nowhere.pth")
    assert "nowhere.pth" in line and not Path("new").exists()
