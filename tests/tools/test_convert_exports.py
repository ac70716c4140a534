"""From the stored exports of annotation tools to label files that the data set's reader takes."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.annotated_scene import BOX, CAR, ELLIPSE, LINE, SKY, SPOT, TREE, painted
from helpers.paths import STORED, TOOLS
from helpers.tiny_run import exit_of, load_tool
from PIL import Image

from tagclip.data.label_io import read_label
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.cli import run_tool

# Name, export, label file, and the layers from below to above.
EXPORTS = {
    "cvat": (
        "cvat/annotations.xml",
        "scene 1/a.png",
        [
            ("road", ELLIPSE),
            ("tree", TREE),
            ("road", LINE),
            ("sky", SKY),
            ("car & bus", CAR),
            ("tree", SPOT),
            ("road", BOX),
        ],
    ),
    "datumaro": (
        "datumaro",
        "train/sub_a.png",
        [("road", ELLIPSE), ("tree", TREE), ("sky", SKY), ("car", CAR), ("road", BOX)],
    ),
    "label-studio": (
        "label_studio/json_min.json",
        "0a1b2c3d-a.png",
        [("car (old)", CAR), ("tree", TREE), ("sky", SKY), ("road/wet", LINE), ("tree", SPOT)],
    ),
    "label-studio-png": (
        "label_studio/png",
        "task-7.png",
        [("car (old)", CAR), ("tree", TREE), ("road-wet", LINE), ("tree", SPOT)],
    ),
}


def convert(source: Path, tool: str, output: Path, *options: str) -> int | str | None:
    """The message of an error, or None."""
    module = load_tool(TOOLS / "convert_labels.py")
    args = [str(source), "--from", tool, "--output", str(output), "--workers", "0", *options]
    return exit_of(lambda: run_tool(module.main, module.parse_args(args)))


@pytest.mark.parametrize("tool", EXPORTS)
def test_label_files(tmp_path: Path, tool: str) -> None:
    export, file, layers = EXPORTS[tool]
    assert convert(STORED / export, tool, tmp_path / "labels") is None
    vocabulary = Vocabulary.from_json(tmp_path / "labels" / "vocabulary.json")
    ids = {entry.name: entry.id for entry in vocabulary.classes}
    # 0 is a class here: what no layer covers is ignored.
    covered = np.any([mask for _, mask in layers], 0)
    expected = painted(*((ids[name], mask) for name, mask in layers))
    found = read_label(tmp_path / "labels" / file)
    assert (found == np.where(covered, expected, vocabulary.ignore_label)).all()


def test_a_project_of_supervisely(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rest becomes a class of its own, and it is said that it is new."""
    options = ("--unlabelled", "background")
    assert convert(STORED / "supervisely", "supervisely", tmp_path, *options) is None
    assert Vocabulary.from_json(tmp_path / "vocabulary.json").names[:2] == ["background", "tree"]
    said = "--unlabelled: {} has no class 'background'; it becomes a new one, with id 0\n"
    assert capsys.readouterr().err == said.format(STORED / "supervisely")
    found = read_label(tmp_path / "ds0" / "img" / "a.png")
    assert set(np.unique(found)) == {0, 1, 2, 3, 4} and (found[TREE & ~CAR] == 1).all()
    assert not read_label(tmp_path / "ds0" / "datasets" / "inner" / "img" / "b.png").any()


def test_the_commands_of_the_docs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    """Each on the export that it names, in a folder that holds them all."""
    text = (repository / "docs" / "other_tools.md").read_text()
    section = text.split("### Label Studio, CVAT, datumaro, Supervisely")[1].split("```")[1]
    commands = [shlex.split(line) for line in section.splitlines() if line.startswith("tagclip")]
    assert len(commands) == 4
    shutil.copy(STORED / "label_studio" / "json.json", tmp_path / "project.json")
    shutil.copy(STORED / "cvat" / "annotations.xml", tmp_path)
    shutil.copytree(STORED / "datumaro", tmp_path / "export")
    shutil.copytree(STORED / "supervisely", tmp_path / "project")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (12, 9)).save(tmp_path / "images" / "a.png")
    monkeypatch.chdir(tmp_path)
    module = load_tool(TOOLS / "convert_labels.py")
    written = {}
    for command in commands:
        assert command[:3] == ["tagclip", "labels", "convert"]
        args = module.parse_args([*command[3:], "--workers", "0"])
        assert exit_of(lambda args=args: run_tool(module.main, args)) is None, command
        written[args.form] = sorted(p.as_posix() for p in Path("labels").rglob("*.png"))
        shutil.rmtree("labels")
    assert written == {
        "label-studio": ["labels/a.png"],
        "cvat": ["labels/scene 1/a.png", "labels/scene 1/empty.png"],
        "datumaro": ["labels/train/sub_a.png"],
        "supervisely": ["labels/ds0/datasets/inner/img/b.png", "labels/ds0/img/a.png"],
    }


def test_labels_outside_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("name,id\ntree,1\ncars,2\nsky,3\nroad,4\n")
    options = ("--classes", str(path))
    message = convert(STORED / "datumaro", "datumaro", tmp_path / "out", *options)
    assert "mine lacks: 'car' (1 segments); did you mean cars?" in message and "\n" not in message
    assert not (tmp_path / "out" / "index.json").exists()


def test_voc_without_colors_says_what_to_write(tmp_path: Path) -> None:
    """As datumaro's VOC export is without a colour table (findings/datumaro_exports.sh)."""
    (tmp_path / "SegmentationClass").mkdir()
    head = "# label:color_rgb:parts:actions\n"
    labelmap = tmp_path / "labelmap.txt"
    labelmap.write_text(f"{head}background:::\ntree:::\ncar:::\n")
    colors = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
    labels = painted((1, TREE), (2, CAR))
    Image.fromarray(colors[labels]).save(tmp_path / "SegmentationClass" / "a.png")
    module = load_tool(TOOLS / "convert_labels.py")
    args = [str(tmp_path / "SegmentationClass"), "--output", str(tmp_path / "out")]
    args += ["--workers", "0"]
    message = exit_of(lambda: run_tool(module.main, module.parse_args(args)))
    assert "datumaro's VOC export leaves them out" in message
    # As CVAT writes it, and as the message says.
    labelmap.write_text(f"{head}background:0,0,0::\ntree:128,0,0::\ncar:0,128,0::\n")
    assert exit_of(lambda: run_tool(module.main, module.parse_args(args))) is None
    assert (read_label(tmp_path / "out" / "a.png") == labels).all()
