"""What all prepare scripts promise: resuming, repeating, errors in one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from helpers.miniature_trees import (
    Labels,
    benchmarks_at,
    make_voc,
    run_script,
    script,
    script_error,
    snapshot,
    write_gray,
    write_jpg,
)

SCRIPT = "prepare_voc"
ANNOTATIONS = Path("VOCdevkit", "VOC2012", "annotations_detectron2")


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Labels]:
    return make_voc(tmp_path)


def test_running_twice_changes_nothing(tmp_path: Path, raw: dict[str, Labels]) -> None:
    run_script(SCRIPT, tmp_path)
    before = snapshot(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    run_script(SCRIPT, tmp_path)
    assert snapshot(tmp_path) == before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_two_processes_write_the_same(tmp_path: Path, raw: dict[str, Labels]) -> None:
    shutil.copytree(tmp_path, tmp_path / "two")
    run_script(SCRIPT, tmp_path)
    run_script(SCRIPT, tmp_path / "two", "--workers", 2)
    assert snapshot(tmp_path / "two" / ANNOTATIONS) == snapshot(tmp_path / ANNOTATIONS)


def _in_child(function: Callable[[], object]) -> int:
    """Run in a copy of this process; the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _killed(
    count: int, monkeypatch: pytest.MonkeyPatch, root: Path, *options: object
) -> Callable[[], None]:
    """A run of the script that is killed when it gives a file its name for the count-th time."""
    calls = []

    def replace(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        os.rename(source, target)

    def killed() -> None:
        monkeypatch.setattr(os, "replace", replace)
        run_script(SCRIPT, root, *options)

    return killed


@pytest.mark.parametrize("count", [1, 3, 5, 6, 7, 8, 9])
def test_killed_and_run_again_gives_the_same_files(
    count: int, tmp_path: Path, raw: dict[str, Labels], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of writing a file: record, labels, list and record of train."""
    shutil.copytree(tmp_path, tmp_path / "whole")
    run_script(SCRIPT, tmp_path / "whole", "--only", "voc2012_train")
    killed = _killed(count, monkeypatch, tmp_path, "--only", "voc2012_train")
    assert _in_child(killed) == (-signal.SIGKILL if count < 9 else 0)
    with benchmarks_at(tmp_path):
        if count < 9:
            with pytest.raises(Exception, match="prepare voc"):
                DatasetCatalog.get("voc2012_train")
    run_script(SCRIPT, tmp_path, "--only", "voc2012_train")
    assert snapshot(tmp_path / ANNOTATIONS) == snapshot(tmp_path / "whole" / ANNOTATIONS)


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path,
    raw: dict[str, Labels],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(task: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script("prepare_common"), "make_label", interrupt)
    with pytest.raises(SystemExit) as caught:
        run_script(SCRIPT, tmp_path)
    assert caught.value.code == 130
    assert "Run the same command to go on" in capsys.readouterr().err


def test_a_record_of_another_class_order_is_refused(tmp_path: Path, raw: dict[str, Labels]) -> None:
    run_script(SCRIPT, tmp_path, "--only", "voc2012_val")
    record = tmp_path / ANNOTATIONS / "val.json"
    before = snapshot(tmp_path)
    tree = json.loads(record.read_text())
    tree["ids"]["cat"], tree["ids"]["dog"] = tree["ids"]["dog"], tree["ids"]["cat"]
    record.write_text(json.dumps(tree))
    message = script_error(SCRIPT, tmp_path, "--only", "voc2012_val")
    assert "another class order, such as 'cat' as 11" in message and "--overwrite" in message
    run_script(SCRIPT, tmp_path, "--only", "voc2012_val", "--overwrite")
    assert snapshot(tmp_path) == before


def test_a_mended_raw_label_ends_the_trouble(tmp_path: Path, raw: dict[str, Labels]) -> None:
    """Nothing is written of one that does not fit its image."""
    bad = tmp_path / "VOCdevkit/VOC2012/SegmentationClass/2007_000042.png"
    good = bad.read_bytes()
    write_gray(bad, np.zeros((36, 48)))
    message = script_error(SCRIPT, tmp_path, "--only", "voc2012_val")
    assert message.startswith(f"DatasetError: {bad}: label is 48x36") and "24x18" in message
    bad.write_bytes(good)
    run_script(SCRIPT, tmp_path, "--only", "voc2012_val")
    # Labels that were written, and an image that is another one since.
    image = tmp_path / "VOCdevkit/VOC2012/JPEGImages/2007_000042.jpg"
    write_jpg(image, 0, (30, 40))
    message = script_error(SCRIPT, tmp_path, "--only", "voc2012_val")
    assert f"it was made of {bad}: mend that first, then pass --overwrite" in message
    write_gray(bad, np.zeros((30, 40)))
    run_script(SCRIPT, tmp_path, "--only", "voc2012_val", "--overwrite")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("fault", ["damaged", "of another size"])
def test_overwriting_with_a_bad_raw_label_leaves_all_that_is_there(
    fault: str, workers: int, tmp_path: Path, raw: dict[str, Labels]
) -> None:
    """Found while the new labels are made, or when they are read back."""
    run_script(SCRIPT, tmp_path)
    before = snapshot(tmp_path / ANNOTATIONS)
    bad = tmp_path / "VOCdevkit/VOC2012/SegmentationClass/2007_000042.png"
    if fault == "damaged":
        bad.write_bytes(b"<html>")
    else:
        write_gray(bad, np.zeros((3, 3)))
    options = ("--only", "voc2012_val", "--workers", workers, "--overwrite")
    message = script_error(SCRIPT, tmp_path, *options)
    assert f"{bad}: " in message
    assert snapshot(tmp_path / ANNOTATIONS) == before


def test_overwriting_stopped_in_its_last_step_leaves_all_that_is_there(
    tmp_path: Path, raw: dict[str, Labels], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    run_script(SCRIPT, tmp_path)
    before = snapshot(tmp_path / ANNOTATIONS)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(script("prepare_common"), "_check_all", interrupt)
        run_script(SCRIPT, tmp_path, "--overwrite")
    assert snapshot(tmp_path / ANNOTATIONS) == before


@pytest.mark.parametrize("count", range(1, 13))
def test_overwriting_killed_leaves_labels_of_one_kind_or_no_record(
    count: int, tmp_path: Path, raw: dict[str, Labels], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while five labels are made, while they take their places, and at the record."""
    only = ("--only", "voc2012_train")
    run_script(SCRIPT, tmp_path, *only)
    folder = tmp_path / ANNOTATIONS
    before = snapshot(folder)
    path = tmp_path / "VOCdevkit/VOC2012/SegmentationClass/2007_000032.png"
    write_gray(path, np.where(raw["train"]["2007_000032"] == 3, 4, 3))

    assert _in_child(_killed(count, monkeypatch, tmp_path, *only, "--overwrite")) == (
        -signal.SIGKILL if count < 12 else 0
    )
    left = {name: text for name, text in snapshot(folder).items() if "/." not in f"/{name}"}
    if count <= 5:
        assert left == before
    if 5 < count < 12:
        assert left.keys() == before.keys() - {"train.json"}
        with benchmarks_at(tmp_path), pytest.raises(Exception, match="prepare voc"):
            DatasetCatalog.get("voc2012_train")
    if count == 6:
        assert "train/2007_000032.png: found " in script_error(SCRIPT, tmp_path, *only)
    run_script(SCRIPT, tmp_path, *only, *(["--overwrite"] if count <= 6 else []))
    after = snapshot(folder)
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == ["train/2007_000032.png"]


def test_overwriting_names_the_place_that_cannot_be_written(
    tmp_path: Path, raw: dict[str, Labels], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run_script(SCRIPT, tmp_path)
    before = snapshot(tmp_path / ANNOTATIONS)
    place = tmp_path / ANNOTATIONS / "val" / "2007_000033.png"
    options = ("--only", "voc2012_val", "--overwrite")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        message = script_error(SCRIPT, tmp_path, *options)
    assert f"{place}: No space left on device; mend it" in message
    assert snapshot(tmp_path / ANNOTATIONS) == before
    place.unlink()
    place.mkdir()
    message = script_error(SCRIPT, tmp_path, *options)
    assert f"{place}: found a folder, expected a file or nothing there; move it away" in message
    assert (tmp_path / ANNOTATIONS / "val.json").is_file()
    place.rmdir()
    run_script(SCRIPT, tmp_path, *options)
    assert snapshot(tmp_path / ANNOTATIONS) == before


@pytest.mark.parametrize("option", ["", "--overwrite"])
def test_a_file_in_the_place_of_the_folder_of_labels_is_named(
    option: str, tmp_path: Path, raw: dict[str, Labels]
) -> None:
    place = tmp_path / ANNOTATIONS
    place.write_text("not a folder")
    message = script_error(SCRIPT, tmp_path, "--only", "voc2012_val", *filter(None, [option]))
    assert message.startswith(f"DatasetError: {place}: ")
    expected = "Not a directory; mend it" if option else "found a file, expected a folder for"
    assert expected in message
    place.unlink()
    run_script(SCRIPT, tmp_path, "--only", "voc2012_val")


def test_a_full_disk_is_one_line(
    tmp_path: Path, raw: dict[str, Labels], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    message = script_error(SCRIPT, tmp_path)
    assert "No space left on device; mend it and run the same command to go on" in message


def test_help_and_mistyped_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        script(SCRIPT).invoke_main(["--help"])
    assert caught.value.code == 0
    assert "tagclip prepare voc --root" in capsys.readouterr().out
    for argv in (["--workers", "0"], ["--only", "voc"], ["--rot", "x"]):
        with pytest.raises(SystemExit) as caught:
            script(SCRIPT).invoke_main(argv)
        assert caught.value.code == 2
