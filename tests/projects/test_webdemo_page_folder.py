"""The folder of visitors' files: what a killed server leaves there goes with the next one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

from tagclip.projects.webdemo.page_folder import page_folder

_CODE = """
import sys
from tagclip.projects.webdemo.page_folder import page_folder
with page_folder() as folder:
    (folder / "upload.png").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_files_of_a_killed_server_go_and_those_of_another_stay(place: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", _CODE]
    with subprocess.Popen(command, cwd=REPOSITORY, **pipes) as process:
        theirs = Path(process.stdout.readline().strip())
        with page_folder() as ours:
            assert (theirs / "upload.png").is_file() and list(ours.iterdir()) == []
        assert not ours.exists() and (theirs / "upload.png").is_file()
        process.kill()
        process.wait()
        assert (theirs / "upload.png").is_file()
        with page_folder() as ours:
            assert not theirs.parent.exists() and [ours.parent] == list(place.iterdir())
    assert not list(place.iterdir())


def test_what_others_put_there_is_left_alone(place: Path) -> None:
    """A link for a lock would have the file that it leads to emptied, one for a folder removed."""
    kept = place / "kept"
    kept.mkdir()
    (kept / ".lock").write_text("not of a server")
    (place / "tagclip-page-link").symlink_to(kept)
    (place / "tagclip-page-trap").mkdir()
    (place / "tagclip-page-trap" / ".lock").symlink_to(kept / ".lock")
    (place / "tagclip-page-new").mkdir()
    before = sorted(os.listdir(place))
    with page_folder():
        pass
    assert sorted(os.listdir(place)) == before
    assert (kept / ".lock").read_text() == "not of a server"
