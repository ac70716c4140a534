"""Names of images that are no UTF-8, as of old archives: every command that takes images copes."""

from __future__ import annotations

import os
import shutil

import pytest
from helpers.tiny_run import tiny_config
from helpers.writing_commands import CASES, Case, Stage, ended

# Of "café", in Latin-1.
MARK = os.fsdecode(b"caf\xe9 ")
# They know an image by its name in UTF-8 alone.
REFUSED = ("labels export cvat", "labels export label-studio")
READING = {
    *("analyze", "bulk", "compare", "evaluate", "fit-gate", "labels convert", "labels export"),
    *("minibench report", "run-onnx", "score", "segment", "train", "validate", "visualize data"),
    "visualize results",
}
TEXTS = {".csv", ".html", ".json", ".md", ".txt", ".xml", ".yaml"}


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory, tiny_clip_json: str, tiny_vocabulary_json: str
) -> Stage:
    root = tmp_path_factory.mktemp("names")
    stage = Stage(root, tiny_config(root, tiny_clip_json, tiny_vocabulary_json))
    made = [stage.config.parent / "images", stage.config.parent / "labels"]
    for folder in (*made, stage.images, stage.masks):
        for path in [*folder.rglob("*.png"), *folder.rglob("*.jpg")]:
            path.rename(path.with_name(MARK + path.name))
    stage.video = stage.video.rename(root / f"{MARK}.avi")
    return stage


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] * case.is_slow, id=str(case))
        for case in CASES
        if case.command in READING
    ],
)
def test_names_that_are_no_utf8(
    case: Case,
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in case.needs:
        pytest.importorskip(name)
    out = stage.root / "out"
    shutil.rmtree(out, ignore_errors=True)
    case.before(stage, out, monkeypatch)
    words = case.words(stage, out)
    capsys.readouterr()
    code, line = ended(case.command, *words)
    said = line + "".join(capsys.readouterr())
    assert "Traceback" not in said and "Logging error" not in said
    if str(case) in REFUSED:
        shown = "\\xe9 "
        assert code == 1 and "\n" not in line and "rename the image and its label file" in line
        assert f"found the name caf{shown}" in line
        assert not out.exists()
        return
    assert code in (None, 0), said
    for file in out.rglob("*") if out.exists() else ():
        if file.suffix in TEXTS:
            file.read_text("utf-8")
