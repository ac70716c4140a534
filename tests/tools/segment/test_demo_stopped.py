"""tools/demo.py as a process that gets a signal: what is done is whole and told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from helpers.paths import REPOSITORY, TOOLS
from helpers.pictures import picture, video
from PIL import Image

# The tool, which gets a signal with the third result.
SIGNALLED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv.pop(1))
number, calls = int(sys.argv.pop(1)), []
from tagclip.demo.results import ResultKeeper
keep = ResultKeeper.__call__
def count(self, *args):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), number)
    return keep(self, *args)
ResultKeeper.__call__ = count
import demo
demo.invoke_main()
"""
WORDS = ("--vocab", "cat, zebra")
ENDS = [
    (signal.SIGTERM, 0),
    pytest.param(signal.SIGHUP, 0, marks=pytest.mark.slow),
    (signal.SIGINT, 130),
]


def segment(weights: Path, number: int, *words: object) -> tuple[int, str]:
    """Exit code and what was said."""
    ended = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(TOOLS), str(int(number)),
         "--weights", str(weights), *WORDS, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )  # fmt: skip
    return ended.returncode, ended.stdout


@pytest.mark.parametrize(("number", "code"), ENDS)
def test_a_video_ends_with_the_frame_at_work(
    weights: Path, tmp_path: Path, number: int, code: int
) -> None:
    out, result = tmp_path / "out", tmp_path / "r.json"
    path = video(tmp_path / "v.avi")
    words = ("--input", path, "--output", out, "--save-labels", "--json", result)
    left, said = segment(weights, number, *words)
    assert left == code, said
    text = f"3 of 6 frames are in {out}/v.mp4 and {out}/v_labels and {result}; the same command "
    text += "with --overwrite begins anew"
    assert text in said.splitlines()[-1] and "Traceback" not in said
    assert {path.name for path in out.iterdir()} == {"v.mp4", "v_labels"}
    assert cv2.VideoCapture(str(out / "v.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert sorted(os.listdir(out / "v_labels")) == [f"{n:06d}.png" for n in range(3)]
    assert len(json.loads(result.read_text())["images"]) == 3


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGTERM, 143, "Stopped by SIGTERM"),
        pytest.param(signal.SIGINT, 130, "Interrupted", marks=pytest.mark.slow),
    ],
)
def test_finished_pictures_of_a_folder_stay(
    weights: Path, tmp_path: Path, number: int, code: int, line: str
) -> None:
    out, result = tmp_path / "out", tmp_path / "r.json"
    (tmp_path / "in").mkdir()
    for seed in range(5):
        Image.fromarray(picture(seed=seed)).save(tmp_path / "in" / f"{seed}.png")
    words = ("--input", tmp_path / "in", "--output", out, "--json", result)
    left, said = segment(weights, number, *words)
    assert left == code, said
    assert said.splitlines()[-1] == (
        f"{line}: 2 of 5 images are finished and stay, the same command goes on with the others"
    )
    assert sorted(os.listdir(out)) == ["0.png", "1.png"]
    assert len(json.loads(result.read_text())["images"]) == 2
    assert not list(tmp_path.glob(".r.json*"))


@pytest.mark.slow
def test_a_signal_for_the_whole_group_is_the_main_process_s(weights: Path, tmp_path: Path) -> None:
    """As a terminal or a cluster sends it: the other processes finish the pictures at work."""
    out, result = tmp_path / "out", tmp_path / "r.json"
    (tmp_path / "in").mkdir()
    Image.fromarray(picture()).save(tmp_path / "in" / "0.png")
    for index in range(1, 2000):
        os.link(tmp_path / "in" / "0.png", tmp_path / "in" / f"{index}.png")
    process = subprocess.Popen(
        [sys.executable, str(TOOLS / "demo.py"), "--weights", str(weights), *WORDS,
         "--input", str(tmp_path / "in"), "--output", str(out), "--json", str(result),
         "--workers", "2"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        text=True,
    )  # fmt: skip
    while not list(out.glob("*.png")):
        assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 143, said
    count = len(os.listdir(out))
    last = f"Stopped by SIGTERM: {count} of 2000 images are finished and stay"
    assert last in said.splitlines()[-1] and "Traceback" not in said, said
    assert len(json.loads(result.read_text())["images"]) == count
    assert not list(out.glob(".*"))
