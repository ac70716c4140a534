"""Temporary files of the web page: cleaners leave them, and without them it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from helpers.webdemo_server import findable_weights, page_command

from tagclip.errors import ConfigError
from tagclip.projects.webdemo.temporary import TemporaryFiles
from tagclip.utils.files import temporary_folder

OLD = 10**9


def clock(times: Iterator[float]):
    return lambda: next(times)


def test_files_are_made_new_once_an_hour(tmp_path: Path) -> None:
    folder, file, gone = tmp_path / "folder", tmp_path / "file", tmp_path / "gone"
    folder.mkdir()
    file.write_text("a")
    files = TemporaryFiles([folder], [file, gone], clock(iter([0, 3599, 3600, 3601, 7200])))

    def ages() -> list[bool]:
        return [path.stat().st_mtime == OLD for path in (folder, file)]

    # Of each look, whether they still are old.
    for expected in (True, False, True, False):
        os.utime(folder, (OLD, OLD))
        os.utime(file, (OLD, OLD))
        files.check()
        assert ages() == [expected] * 2
    assert file.read_text() == "a" and not gone.exists()


def test_what_has_gone_is_named(tmp_path: Path) -> None:
    files = TemporaryFiles([tmp_path, tmp_path / "a"])
    with pytest.raises(ConfigError, match=f"^{tmp_path}/a: found it removed while the page was"):
        files.check()


@pytest.mark.parametrize(
    "name",
    [
        "tagclip-page-*/files",
        "pymp-*/*",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("tagclip-page-*", "pymp-*")),
    ],
)
def test_a_server_whose_temporary_files_go_ends_with_one_line(
    name: str, tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    """It would answer on, and blame the pictures of its visitors."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    command, _ = page_command(findable_weights(tiny_cfg, tmp_path))
    # Its path is shorter than that of `tmp_path`: sockets lie in it.
    with (
        temporary_folder() as place,
        subprocess.Popen(
            command, env={**os.environ, "TMPDIR": str(place)}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        ) as process,
    ):  # fmt: skip
        assert any("The page is at" in line for line in iter(process.stdout.readline, ""))
        (gone,) = place.glob(name)
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        said = process.communicate(timeout=60)[0].splitlines()
        assert process.wait() == 1
        assert said[-1].startswith(f"ConfigError: {gone}") and "found it removed while" in said[-1]
        assert not [line for line in said if "Traceback" in line]
        assert not list(place.glob("tagclip-page-*")) and not list(place.glob("pymp-*"))
