"""The command `tagclip`: every script has a name there, and starts nothing but itself."""

from __future__ import annotations

import ast
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from helpers.tiny_run import exit_of

from tagclip import cli, projects
from tagclip.cli.commands import COMMANDS, MODULES, RENAMED


def run(*words: str, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-X", "importtime", "-m", "tagclip", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, **options)


def loaded(result: subprocess.CompletedProcess) -> set[str]:
    """Modules that a process imported."""
    return {line.split("|")[-1].strip() for line in result.stderr.splitlines()}


def file_of(module: str, repository: Path) -> Path:
    """Where the module of a command lies."""
    package, module = f"tagclip.{module}".rsplit(".", 1)
    return repository / projects._FOLDERS[package] / f"{module}.py"


def test_every_script_is_a_command(repository: Path) -> None:
    scripts = [*repository.glob("tools/*.py"), *repository.glob("projects/*/*.py")]
    scripts += repository.glob("datasets/*.py")
    scripts = {path for path in scripts if 'if __name__ == "__main__":' in path.read_text()}
    assert {file_of(module, repository) for module in MODULES.values()} == scripts
    assert len(scripts) == len(MODULES)


def test_every_command_has_a_parser_and_a_door(repository: Path) -> None:
    """Functions that need no arguments."""
    for name, module in MODULES.items():
        tree = ast.parse(file_of(module, repository).read_text())
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for function in ("make_parser", "invoke_main"):
            arguments = functions[function].args
            assert len(arguments.args) == len(arguments.defaults), name


def test_help_lists_every_command_and_imports_none() -> None:
    result = run("--help")
    lines = [line.strip() for line in result.stdout.splitlines()]
    for title, group in COMMANDS.items():
        assert f"{title}:" in lines
        for name, (_, text) in group.items():
            assert any(line.startswith(f"{name}  ") and line.endswith(text) for line in lines)
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert not {"numpy", "torch", "detectron2", "tagclip.tools"} & loaded(result)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_command_says_fast_what_it_takes(name: str, tmp_path: Path) -> None:
    """And is found from anywhere."""
    result = run(*name.split(), "--help", cwd=tmp_path)
    assert result.stdout.startswith(f"usage: tagclip {name} ")
    assert "argparse" in loaded(result)
    # argparse does not fold a group of options in the usage.
    text = result.stdout.partition("\n\n")[2] if name == "labels convert" else result.stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "python " not in result.stdout or name == "setup-detectron2"
    lines = result.stdout[result.stdout.index("\noptions:\n") :].splitlines()
    # Help stands beside an option, or in the column below it.
    pairs = itertools.pairwise([*lines, ""])
    bare = [
        line
        for line, below in pairs
        if line.startswith("  -") and "  " not in line[2:] and not below.startswith(" " * 9)
    ]
    assert not bare
    assert not {"numpy", "torch", "detectron2", "cv2"} & loaded(result)


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["tagclip", "--version"])
    cli.main()
    assert capsys.readouterr().out.startswith("tagclip 0.")


def end_of(*words: str) -> int | str | None:
    """Message or code with which the command ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tagclip", *words])
        patch.setattr(sys, "path", list(sys.path))
        return exit_of(cli.main)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian --help", "tagclip: found the command 'trian'; did you mean train?"),
        ("prepare vco", "tagclip: found the command 'prepare vco', expected prepare ade20k, prep"),
        ("minibench x", "expected minibench, minibench data, minibench report, minibench table"),
        ("\x1b[0m", "tagclip: found the command '\\x1b[0m', expected one of those that tagclip"),
    ],
)
def test_an_unknown_command(words: str, message: str) -> None:
    found = end_of(*words.split())
    assert message in found and found.isprintable()


def test_the_name_of_a_family_lists_its_commands(capsys: pytest.CaptureFixture) -> None:
    families = {name.split()[0] for name in MODULES if " " in name}
    assert families == {"prepare", "labels", "visualize", "minibench"}
    for family, end in itertools.product(families - {"minibench"}, ([], ["--help"], ["-h"])):
        assert end_of(family, *end) is None
        lines = capsys.readouterr().out.splitlines()
        shown = [line.split("  ")[1] for line in lines if line.startswith("  ")]
        assert shown == [name for name in MODULES if name.startswith(f"{family} ")]
    # This one is a command, too.
    assert end_of("minibench", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "minibench data, report, table and clip" in text


@pytest.mark.parametrize("name", RENAMED)
def test_an_old_name_says_the_new_one(name: str, capsys: pytest.CaptureFixture) -> None:
    new = RENAMED[name]
    assert new in MODULES and name not in MODULES
    for words in ([name], [name, "--help"], [name, "--input", "a.png"]):
        assert end_of(*words) == f"tagclip {name}: is called tagclip {new} now; run that"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("words", ["--help", "prepare", "train --help", "cost"])
@pytest.mark.parametrize("is_buffered", [True, False])
def test_a_reader_that_goes_away_is_no_error(
    words: str, is_buffered: bool, repository: Path
) -> None:
    """As of ``| head -1``, whether the first line or the last is not read."""
    if words == "cost":
        words = "cost --config-file minibench/tagclip_minibench_composition.yaml"
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "tagclip", *words.split()],
        stdout=write,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "" if is_buffered else "1"},
        check=False,
    )
    os.close(write)
    assert result.stderr == b"" and result.returncode in (0, 1)


def test_a_pipe_that_breaks_elsewhere_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(name: str) -> NoReturn:
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr(cli, "load_command", fail)
    monkeypatch.setattr(sys, "argv", ["tagclip", "train"])
    with pytest.raises(BrokenPipeError, match="of a worker"):
        cli.main()


def test_a_command_runs(repository: Path, capsys: pytest.CaptureFixture) -> None:
    config = "minibench/tagclip_minibench_composition_convtrust.yaml"
    assert end_of("cost", "--config-file", config) is None
    assert "Parameters" in capsys.readouterr().out


def test_an_error_of_a_command_is_one_line(tmp_path: Path) -> None:
    """Also of a script that imports the files beside it."""
    found = end_of("train", "--config-file", str(tmp_path / "none.yaml"))
    assert found.startswith("ConfigError: ") and "none.yaml" in found
    found = end_of("prepare", "voc", "--root", str(tmp_path))
    assert found.startswith("DatasetError: ") and str(tmp_path) in found


def test_setup_installs_the_packages_that_a_checkout_finds(repository: Path) -> None:
    tree = ast.parse((repository / "setup.py").read_text())
    assigned = {
        node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)
    }
    assert ast.literal_eval(assigned["FOLDERS"]) == projects._FOLDERS
    assert all((repository / folder).is_dir() for folder in projects._FOLDERS.values())
    assert "tagclip = tagclip.cli:main" in (repository / "setup.py").read_text()
