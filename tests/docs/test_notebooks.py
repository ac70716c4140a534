"""The notebooks of docs/notebooks, as they are committed and executed from an empty folder."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers.notebooks import NOTEBOOKS, run_notebook
from helpers.paths import REPOSITORY
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

# Folders of a machine, not what an address or a link has.
_MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|usr|opt|var|Users|private)/|[A-Z]:\\\\")
_LINK = re.compile(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)")
_LIMIT = 1_000_000


def faults(path: Path) -> Iterator[str]:
    """What a committed notebook may not have."""
    content = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(content, as_version=4)
    nbformat.validate(notebook)
    if len(content.encode()) > _LIMIT:
        yield "too large"
    # Pictures are base64, in which any text may stand.
    if found := _MACHINE.search(re.sub(r"[A-Za-z0-9+/=]{200,}", "", content)):
        yield f"machine: {found[0]}"
    if {"execution", "ExecuteTime"} & {key for cell in notebook.cells for key in cell.metadata}:
        yield "times"
    yield from code_faults([cell for cell in notebook.cells if cell.cell_type == "code"])
    for cell in notebook.cells:
        for link in _LINK.findall(cell.source) if cell.cell_type == "markdown" else ():
            if not (path.parent / link).exists():
                yield f"link: {link}"


def code_faults(cells: list[NotebookNode]) -> Iterator[str]:
    """Those of the code cells and their outputs."""
    if [cell.execution_count for cell in cells] != [*range(1, len(cells) + 1)]:
        yield "not executed in order"
    for output in (output for cell in cells for output in cell.outputs):
        if output.output_type == "error":
            yield f"error: {output.ename}"
        elif output.get("name") == "stderr":
            yield f"stderr: {output.text}"


def test_all_are_listed() -> None:
    assert {*NOTEBOOKS} == {*REPOSITORY.glob("docs/**/*.ipynb")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_committed_notebook_is_whole(path: Path) -> None:
    assert not list(faults(path))
    cells = nbformat.read(path, as_version=4).cells
    assert any("text/html" in o.get("data", {}) for c in cells for o in c.get("outputs", ()))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ({"execution_count": 2}, "not executed in order"),
        ({"execution_count": None}, "not executed in order"),
        ({"outputs": [new_output("error", ename="KeyError")]}, "error: KeyError"),
        ({"outputs": [new_output("stream", name="stderr", text="hm")]}, "stderr: hm"),
        ({"outputs": [new_output("stream", text="at /home/a/b.py")]}, "machine: /home/"),
        ({"outputs": [new_output("stream", text="C:\\Users")]}, "machine: C:\\\\"),
        ({"outputs": [new_output("stream", text="ab " * 400_000)]}, "too large"),
        ({"metadata": {"execution": {"shell.execute_reply": "2026-01-01"}}}, "times"),
    ],
)
def test_a_fault_is_found(cell: dict[str, Any], expected: str, tmp_path: Path) -> None:
    code = new_code_cell("1", **{"execution_count": 1, **cell})
    text = new_markdown_cell("[a](a.ipynb) [b](https://b.c/d) [c](#x)")
    path = tmp_path / "a.ipynb"
    nbformat.write(new_notebook(cells=[text, code]), path)
    assert list(faults(path)) == [expected]


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("[a](no.md#x)")]), path)
    assert list(faults(path)) == ["link: no.md"]


def test_a_notebook_runs_in_a_folder_by_this_python(tmp_path: Path) -> None:
    """Outputs are in one piece, and nothing of the run stays in the file."""
    path = tmp_path / "source" / "a.ipynb"
    path.parent.mkdir()
    code = (
        "import sys, pathlib, tagclip, os; pathlib.Path('made').touch()\n"
        "print(sys.executable, flush=True)\n"
        "print(tagclip.__file__, os.environ['DETECTRON2_DATASETS'])"
    )
    nbformat.write(new_notebook(cells=[new_code_cell(code)]), path)
    before = path.read_bytes()
    folder = tmp_path / "fresh"
    folder.mkdir()
    notebook = run_notebook(path, folder)
    (output,) = notebook.cells[0].outputs
    expected = [sys.executable, f"{REPOSITORY}/tagclip/__init__.py {folder}/datasets"]
    assert output.text.splitlines() == expected
    assert [entry.name for entry in folder.iterdir()] == ["made"]
    assert path.read_bytes() == before and not notebook.cells[0].metadata
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}


def test_an_error_in_a_cell_ends_the_run(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("{}['missing']")]), path)
    with pytest.raises(CellExecutionError, match="KeyError"):
        run_notebook(path, tmp_path)


@pytest.mark.slow
def test_all_run_from_an_empty_folder(tmp_path: Path) -> None:
    """One after the other, as they are read; they show what is committed, in other digits."""
    for path in NOTEBOOKS:
        executed = run_notebook(path, tmp_path)
        assert shown(executed) == shown(nbformat.read(path, as_version=4)), path.name
        nbformat.write(executed, tmp_path / path.name)
        assert not [fault for fault in faults(tmp_path / path.name) if "link" not in fault]


def shown(notebook: NotebookNode) -> list[list[set[str]]]:
    """Of each code cell, the kinds of its outputs."""
    return [
        [{o.output_type, *o.get("data", {})} for o in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
