"""Every command on file systems that cannot be written: one line, exit code 1, nothing lost."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from helpers.full_disk import largest_file, read_only
from helpers.miniature_trees import snapshot
from helpers.tiny_run import tiny_config
from helpers.writing_commands import CASES, Case, Stage, ended

from tagclip.cli.commands import MODULES

# They print, and the shell leads that into a file.
PRINTING = ("configs", "towers", "cost")
KINDS = ("almost full", "read-only", *(
    pytest.param(kind, marks=pytest.mark.slow) for kind in ("full", "full at the largest")
))  # fmt: skip
REASON = re.compile(
    r"File too large|Permission denied|No usable temporary|bytes of the video are there"
)
TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp|\.part\.|\.probe\.")

Files = Mapping[str, bytes | str]


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory, tiny_clip_json: str, tiny_vocabulary_json: str
) -> Stage:
    root = tmp_path_factory.mktemp("unwritable")
    return Stage(root, tiny_config(root, tiny_clip_json, tiny_vocabulary_json))


def test_every_command_has_a_case() -> None:
    assert {case.command for case in CASES} == set(MODULES)


@pytest.fixture(scope="module")
def finished(stage: Stage) -> dict[str, tuple[Path, list[int]]]:
    """Case -> what a call leaves that nothing disturbs, and sizes of what the next one writes."""
    return {}


def finish(case: Case, stage: Stage, finished: dict[str, tuple[Path, list[int]]]) -> list[int]:
    """Put what a call leaves into the folder, as it is before the next; sizes of what it writes."""
    out, kept = stage.root / "out", stage.root / f"kept {case}"
    shutil.rmtree(out, ignore_errors=True)
    if str(case) not in finished:
        with pytest.MonkeyPatch.context() as patch:
            case.before(stage, out, patch)
            given = snapshot(out) if out.exists() else {}
            code, line = ended(case.command, *case.words(stage, out))
            assert code in (None, 0), line
        made = snapshot(out) if out.exists() else {}
        out.mkdir(exist_ok=True)
        case.again(out)
        missing = made.keys() - snapshot(out).keys() or made.keys() - given.keys()
        sizes = [len(made[name]) for name in missing if isinstance(made[name], bytes)]
        shutil.move(out, kept)
        finished[str(case)] = kept, list(filter(None, sizes)) or [1]
    shutil.copytree(finished[str(case)][0], out, symlinks=True)
    return finished[str(case)][1]


def broken(kind: str, out: Path, sizes: list[int]) -> AbstractContextManager[None]:
    """The file system for a call: no byte, less than the smallest, less than the largest file."""
    if kind == "read-only":
        return read_only(out)
    # Less by a tenth: a table of times is some bytes shorter or longer in the next call.
    limits = {"full": 0, "almost full": min(sizes), "full at the largest": max(sizes)}
    return largest_file(limits[kind] * 9 // 10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] * case.is_slow, id=str(case))
        for case in CASES
        if case.command not in PRINTING
    ],
)
def test_an_output_that_cannot_be_written(
    case: Case,
    kind: str,
    stage: Stage,
    finished: dict[str, tuple[Path, list[int]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in case.needs:
        pytest.importorskip(name)
    if case.is_temporary and kind == "read-only":
        pytest.skip("Python takes another folder for temporary files")
    monkeypatch.delenv("TAGCLIP_DEBUG", raising=False)
    out = stage.root / "out"
    sizes = finish(case, stage, finished)
    before = snapshot(out)
    case.before(stage, out, monkeypatch)
    words = case.words(stage, out)
    capsys.readouterr()
    with broken(kind, out, sizes):
        code, line = ended(case.command, *words)
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert (code, len(line.splitlines())) == (1, 1), (code, line, said)
    assert str(out) in line or (case.command == "minibench" and " output" in line), line
    assert REASON.search(line), line
    assert "Traceback" not in said + line, said
    assert_kept(case, kind, before, snapshot(out), sizes)
    if kind != "full at the largest":
        assert not re.search(r"^Written: |: Written: ", said, re.MULTILINE)


def assert_kept(case: Case, kind: str, before: Files, after: Files, sizes: list[int]) -> None:
    """What was there is there; what is new is whole."""
    assert not [name for name in after if TEMPORARY.search(name)]
    if kind in ("full", "read-only"):
        assert {name: after.get(name) for name in before} == before
    elif not case.replaces:
        # A file of this size cannot have been written anew.
        limit = min(sizes) if kind == "almost full" else max(sizes)
        large = {n: c for n, c in before.items() if isinstance(c, bytes) and len(c) >= limit}
        assert {name: after.get(name) for name in large} == large


@pytest.mark.parametrize(
    "command", [PRINTING[0], *(pytest.param(c, marks=pytest.mark.slow) for c in PRINTING[1:])]
)
def test_a_list_that_the_shell_leads_to_a_full_disk(command: str, stage: Stage) -> None:
    (case,) = (case for case in CASES if case.command == command)
    words = map(str, case.words(stage, stage.root / "out"))
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "tagclip", *command.split(), *words],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1] == (
        "stdout: cannot be written (No space left on device); free space or choose another place"
    )
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr
