"""What all prepare scripts promise: resuming, repeating, errors in one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

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


@pytest.mark.parametrize("count", [1, 3, 5, 6, 7, 8, 9])
def test_killed_and_run_again_gives_the_same_files(
    count: int, tmp_path: Path, raw: dict[str, Labels], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of writing a file: record, labels, list and record of train."""
    shutil.copytree(tmp_path, tmp_path / "whole")
    run_script(SCRIPT, tmp_path / "whole", "--only", "voc2012_train")
    calls = []

    def replace(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        os.rename(source, target)

    def killed() -> None:
        monkeypatch.setattr(os, "replace", replace)
        run_script(SCRIPT, tmp_path, "--only", "voc2012_train")

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
