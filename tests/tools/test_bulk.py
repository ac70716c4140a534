"""tools/bulk.py: what a user of the command sees, and what kills leave behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from detectron2.config import CfgNode
from helpers.bulk import content_of, write_images, write_tar
from helpers.full_disk import largest_file
from helpers.paths import REPOSITORY
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import exit_of, own_loggers
from PIL import Image
from pyarrow import parquet

from tagclip.bulk.progress import Progress
from tagclip.bulk.shards import ShardResult
from tagclip.errors import ConfigError, NotInstalledError
from tagclip.evaluation.segment_rows import read_rows
from tagclip.tools import bulk
from tagclip.utils.cli import run_tool
from tagclip.utils.run_lock import RunLock

IMAGES = 8


@pytest.fixture
def arguments(tiny_cfg: CfgNode, tmp_path: Path) -> list[str]:
    """Of a run on eight images in three shards."""
    write_images(tmp_path / "in", IMAGES)
    weights = save_tiny(tiny_cfg, tmp_path / "model")
    words = ["--vocab", "cat, zebra, sky", "--context", "dog", "--shard-size", "3"]
    return [str(tmp_path / "in"), "--weights", str(weights), *words]


@pytest.fixture
def run(arguments: list[str], tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Call the tool with a folder and more arguments; returns the exit code."""

    def call(name: str, *more: object) -> int:
        output = ["--output", str(tmp_path / name), "--processes", "1"]
        return bulk.main(bulk.parse_args([*arguments, *output, *map(str, more)]))

    with own_loggers():
        yield call


def rows_of(folder: Path) -> list[dict]:
    files = sorted((folder / "segments").iterdir())
    return [row for file in files for row in read_rows(file)]


def test_a_word_without_tokens_is_said_by_the_main_process_alone(
    run: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--vocab", "cat, \U0001f993"]
    assert run("out", *words) == 0
    said = capfd.readouterr()
    assert (said.out.count("letter by letter"), said.err.count("letter by letter")) == (1, 0)


def test_a_run_goes_on_until_all_is_well(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "in", tmp_path / "out"
    good = (images / "004.png").read_bytes()
    (images / "004.png").write_bytes(good[:700])
    (images / "more").mkdir()
    (images / "more" / "gone.jpg").symlink_to("nothing")
    assert run("out", "--labels") == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-3] == "2 of 9 images failed:"
    assert said[-2].startswith("  004.png: cannot decode") and "  more/gone.jpg: no" in said[-1]
    rows = rows_of(out)
    names = [f"{number:03}.png" for number in range(IMAGES)]
    assert [row["image_id"] for row in rows] == [*names, "more/gone.jpg"]
    assert [row["image_id"] for row in rows if row["error"]] == ["004.png", "more/gone.jpg"]
    assert all(row["label_png"] for row in rows if not row["error"])
    # A run that has nothing to do says it again.
    before = content_of(out)
    assert run("out", "--labels") == 1
    assert capsys.readouterr().err.splitlines()[-3:] == said[-3:]
    assert content_of(out) == before
    # Another size: its shard is done again, and no other. Of what is gone the row stays.
    (images / "004.png").write_bytes(good)
    (images / "more" / "gone.jpg").unlink()
    write_images(images / "more", 1)
    assert run("out", "--labels") == 0
    assert "failed" not in capsys.readouterr().err
    after = content_of(out)
    changed = [name for name in before if "segments" in name and after[name] != before[name]]
    assert changed == ["segments/shard-000001.parquet"]
    assert after.keys() - before.keys() == {
        "segments/shard-000003.parquet",
        "shards/shard-000003.txt",
    }
    assert run("fresh", "--labels") == 0
    assert [row for row in rows_of(out) if row["error"] is None] == rows_of(tmp_path / "fresh")


@pytest.mark.slow
def test_images_that_a_parquet_file_names_are_done_again(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One comes back, one is replaced; the rows of a file that is gone stay."""
    images, table = tmp_path / "named", tmp_path / "in" / "t.parquet"
    good = [path.read_bytes() for path in write_images(images, 3)]
    parquet.write_table(pa.table({"path": [f"{images}/00{n}.png" for n in range(3)]}), table)
    (images / "001.png").unlink()
    assert run("out") == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("  t.parquet/1: no such image; bring it back")
    before = content_of(tmp_path / "out")
    assert run("out") == 1
    assert content_of(tmp_path / "out") == before
    (images / "001.png").write_bytes(good[1])
    assert run("out") == 0
    Image.new("RGB", (50, 40)).save(images / "002.png")
    assert run("out") == 0
    after, shard = content_of(tmp_path / "out"), "shard-000003"
    rows = {row["image_id"]: row for row in rows_of(tmp_path / "out")}
    assert (rows["t.parquet/2"]["height"], rows["t.parquet/2"]["width"]) == (40, 50)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {
        "manifest.json", "summary.html", f"segments/{shard}.parquet", f"shards/{shard}.txt",
    }  # fmt: skip
    assert run("fresh") == 0
    assert after == content_of(tmp_path / "fresh")
    table.unlink()
    assert run("out") == 0
    kept = content_of(tmp_path / "out")
    assert {name for name in after if kept[name] != after[name]} <= {"summary.html"}


@pytest.mark.slow
def test_a_run_that_did_not_look_at_named_images_goes_on(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of earlier versions: what names images is done once more, what holds them is not."""
    images = tmp_path / "in"
    path = images / "000.png"
    parquet.write_table(pa.table({"path": [str(path)]}), images / "named.parquet")
    parquet.write_table(pa.table({"image": [path.read_bytes()]}), images / "held.parquet")
    with monkeypatch.context() as patch:
        patch.setattr("tagclip.bulk.members.with_image_sizes", lambda file, column: file)
        assert run("out") == 0
    segments = tmp_path / "out" / "segments"
    done = {file.name: file.stat().st_ino for file in segments.iterdir()}
    assert run("out") == 0
    again = {file.name for file in segments.iterdir() if file.stat().st_ino != done[file.name]}
    assert again == {"shard-000004.parquet"}


def test_a_bad_archive_is_one_line_and_the_others_are_done(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "in"
    write_tar(images / "empty.tar", [("a.json", b"{}")])
    write_tar(images / "good.tar", [("a.png", (images / "000.png").read_bytes())])
    parquet.write_table(pa.table({"name": ["a"]}), images / "names.parquet")
    assert run("out") == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-3] == "2 of 6 shards failed:"
    assert said[-2].startswith(f"  shard-000003: {images}/empty.tar: found no image in it, expect")
    assert said[-1].startswith(f"  shard-000005: {images}/names.parquet: found columns name, exp")
    # What the lines say to do ends the trouble.
    (images / "empty.tar").unlink()
    (images / "names.parquet").unlink()
    assert run("out") == 0
    assert [row["image_id"] for row in rows_of(tmp_path / "out")][-1] == "good.tar/a.png"
    tree = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [(row["source"], row["images"]) for row in tree["shards"]][3:] == [("good.tar", 1)]


def test_what_is_wrong_is_one_line_and_leaves_nothing(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    cases = {
        ("out", "missing.tar"): "INPUT missing.tar: found nothing there, expected images",
        ("file/out",): f"--output {tmp_path}/file/out: cannot be written",
        ("out", "--column", "image"): "--column: found no parquet file among 8 inputs, expected "
        "one; leave --column out, or name parquet files",
        ("out", "--id-column", "a", "--column", "b"): "--column: found no parquet file among 8 "
        "inputs, expected one; leave --column and --id-column out, or name parquet files",
    }
    for arguments, text in cases.items():
        with pytest.raises(ConfigError) as caught:
            run(*arguments)
        assert str(caught.value).startswith(text) and "\n" not in str(caught.value)
    for package, option in (("ray", ("--engine", "ray")), ("pyarrow", ())):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(NotInstalledError, match=r"pip install 'tagclip\[bulk\]'") as caught:
                run("out", *option)
            assert package in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_columns_of_parquet_files_that_have_gone_are_those_of_the_run(
    run: Callable[..., int], tmp_path: Path
) -> None:
    """Nothing else goes on with it; to do all of it again without them is another matter."""
    images = tmp_path / "in"
    table = {"photo": [(images / f"00{n}.png").read_bytes() for n in (0, 1)], "key": ["a", "b"]}
    parquet.write_table(pa.table(table), images / "t.parquet")
    columns = ["--column", "photo", "--id-column", "key"]
    assert run("out", *columns) == 0
    before = content_of(tmp_path / "out")
    (images / "t.parquet").unlink()
    assert run("out", *columns) == 0
    with pytest.raises(ConfigError, match="--column: found no parquet file among 8 inputs"):
        run("out", *columns, "--overwrite")
    rows = [row["image_id"] for row in rows_of(tmp_path / "out")]
    assert [name for name in rows if "parquet" in name] == ["t.parquet/a", "t.parquet/b"]
    after = content_of(tmp_path / "out")
    assert {name: after[name] for name in before if "segments" in name} == {
        name: content for name, content in before.items() if "segments" in name
    }


@pytest.mark.parametrize("name", ["vocabulary.json", "summary.html", "segments/a", "shards/a"])
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_files_of_others_are_kept(
    run: Callable[..., int], tmp_path: Path, name: str, more: list[str]
) -> None:
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(ConfigError, match=rf"mine: found {name.split('/')[0]} and no manifest"):
        run("mine", *more)
    assert [path for path in (tmp_path / "mine").rglob("*") if path.is_file()] == [file]
    assert file.read_text() == "mine"


@pytest.mark.slow
def test_two_runs_in_one_folder_and_a_run_of_other_words(
    run: Callable[..., int], tmp_path: Path
) -> None:
    assert run("out") == 0
    before = content_of(tmp_path / "out")
    with RunLock(tmp_path / "out"), pytest.raises(ConfigError) as caught:
        run("out")
    assert f"process {os.getpid()} on" in str(caught.value)
    with pytest.raises(ConfigError, match="a run that differs in words, expected the same"):
        run("out", "--context", "tree")
    with pytest.raises(ConfigError, match="a run that differs in gate, expected the same"):
        run("out", "--background", "0.3")
    assert content_of(tmp_path / "out") == before
    assert run("out", "--context", "tree", "--overwrite") == 0
    assert run("fresh", "--context", "tree") == 0
    assert content_of(tmp_path / "out") == content_of(tmp_path / "fresh")


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_finished(run: Callable[..., int], tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)).save(
        tmp_path / "in" / "004.png"
    )
    assert run("whole", "--labels", "--shard-size", 1) == 0
    expected = content_of(tmp_path / "whole")
    sizes = [len(expected[f"segments/shard-{number:06}.parquet"]) for number in range(IMAGES)]
    number, limit = 4, max(sizes[:4])
    assert sizes[number] > limit > len(expected["manifest.json"])
    with largest_file(limit), pytest.raises(ConfigError, match="free space and start again"):
        run("out", "--labels", "--shard-size", 1)
    found = content_of(tmp_path / "out")
    done = {name for name in found if name.startswith("segments/")}
    assert done == {f"segments/shard-{done:06}.parquet" for done in range(number)}
    assert all(found[name] == expected[name] for name in done)
    assert run("out", "--labels", "--shard-size", 1) == 0
    assert content_of(tmp_path / "out") == expected


@pytest.mark.parametrize(
    "where",
    [*(pytest.param(where, marks=pytest.mark.slow) for where in ("pipe", "full")), "both full"],
)
def test_a_log_that_nobody_gets_leaves_no_traceback(
    arguments: list[str], tmp_path: Path, where: str
) -> None:
    """Of the main process and of the one that it starts, as of ``| head -1`` and a full disk."""
    if where == "pipe":
        read, stdout = os.pipe()
        os.close(read)
    else:
        stdout = os.open("/dev/full", os.O_WRONLY)
    command = [sys.executable, "-m", "tagclip", "bulk", *arguments, "--processes", "1"]
    ended = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], stdout=stdout, check=False, timeout=300,
        stderr=subprocess.STDOUT if where == "both full" else subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(stdout)
    said = {
        "pipe": None,
        "both full": None,
        "full": "<stdout>: cannot be written (No space left on device); its lines are lost, the "
        "run goes on: free space\nstdout: cannot be written (No space left on device); free space "
        "or choose another place\n",
    }
    assert (ended.stderr or None, ended.returncode) == (said[where], int(where != "pipe"))
    assert len(rows_of(tmp_path / "out")) == IMAGES


@pytest.mark.slow
def test_a_folder_that_goes_meanwhile_ends_the_run(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes would make it anew, maybe beside another run."""
    output, moved = tmp_path / "out", tmp_path / "moved"
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "shard", lambda *_: output.rename(moved))
        with pytest.raises(ConfigError, match="found it moved or removed"):
            run("out")
    assert not (output / "manifest.json").exists()
    assert run("moved") == 0


@pytest.mark.slow
def test_an_interruption_says_how_to_go_on(
    run: Callable[..., int],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(self: Progress, result: ShardResult) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    given = bulk.parse_args([*arguments, "--output", str(tmp_path / "out"), "--processes", "1"])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Progress, "shard", interrupt)
            assert exit_of(run_tool, bulk.run, given) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "Interrupted: finished shards stay, the same command goes on with the others"
    assert len(list((tmp_path / "out" / "segments").iterdir())) == 1
    assert run("out") == 0
    assert run("whole") == 0
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("gpus", "more", "expected"),
    [
        (0, ["--processes", "3"], ["cpu"] * 3),
        (2, [], ["cuda:0", "cuda:1"]),
        (2, ["--processes", "3"], ["cuda:0", "cuda:1", "cuda:0"]),
        (2, ["MODEL.DEVICE", "cuda:1"], ["cuda:1"]),
        (2, ["MODEL.DEVICE", "cpu", "--processes", "2"], ["cpu", "cpu"]),
    ],
)
def test_a_process_for_each_gpu_unless_told(
    arguments: list[str],
    gpus: int,
    more: list[str],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    given = bulk.parse_args([*arguments, "MODEL.DEVICE", "cuda", "--output", "out", *more])
    assert bulk.local_devices(given) == expected


def test_a_process_for_each_core_that_may_be_used(arguments: list[str]) -> None:
    given = bulk.parse_args([*arguments, "--output", "out"])
    assert bulk.local_devices(given) == ["cpu"] * len(os.sched_getaffinity(0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_goes_on(
    run: Callable[..., int], arguments: list[str], tmp_path: Path, seed: int
) -> None:
    """At a moment that the seed draws from all images."""
    assert run("whole") == 0
    moment = random.Random(seed).randint(1, IMAGES)
    output = ["--output", str(tmp_path / "out"), "--processes", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'tests'}:{REPOSITORY}"}
    command = [sys.executable, "-m", "helpers.killed_bulk", str(moment), *arguments, *output]
    # Its processes hold the pipe: all of them have ended when it is read.
    killed = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert killed.returncode == -9, killed.stderr.decode()
    assert content_of(tmp_path / "out") != content_of(tmp_path / "whole")
    tree = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [row["name"] for row in tree["shards"]] == [f"shard-{n:06}" for n in range(3)]
    assert run("out") == 0
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")
