"""The notebooks as they are committed, and that they run in an empty folder."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import nbformat
import pytest
from helpers.notebooks import NOTEBOOKS, executed, read
from helpers.paths import REPOSITORY
from nbformat import NotebookNode
from PIL import Image

# Of some machine: home and temporary folders, those of packages, addresses, clocks.
_LOCAL = re.compile(r"/(home|root|tmp|usr|work|Users|opt)/|site-packages|https?://|\d\d:\d\d:\d\d")


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def without_pictures(text: str) -> str:
    return re.sub(r"base64,[\w+/=]+", "", text)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_all_notebooks_are_listed() -> None:
    assert sorted(NOTEBOOKS) == sorted((REPOSITORY / "docs").rglob("*.ipynb"))


def test_a_committed_notebook_is_whole(path: Path) -> None:
    """Run from the first cell to the last, as `make notebooks` leaves it."""
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert not any(cell.metadata for cell in notebook.cells)
    assert path.stat().st_size < 1_000_000
    assert any("text/html" in output.get("data", {}) for output in outputs(notebook))


def test_outputs_hold_no_errors_and_nothing_of_a_machine(path: Path) -> None:
    notebook = read(path)
    for output in outputs(notebook):
        assert output.output_type in ("stream", "execute_result", "display_data")
        assert output.get("name", "stdout") == "stdout"
    parts = [[*o.get("data", {}).values(), o.get("text")] for o in outputs(notebook)]
    texts = [text for part in parts for text in part]
    texts += [cell.source for cell in notebook.cells]
    for text in filter(None, texts):
        if not _is_picture(text):
            found = _LOCAL.search(without_pictures(text))
            assert not found, found


def _is_picture(text: str) -> bool:
    try:
        Image.open(io.BytesIO(base64.b64decode(text, validate=True))).verify()
    except (OSError, ValueError):
        return False
    return True


@pytest.mark.slow
def test_the_notebooks_run_in_an_empty_folder(tmp_path: Path) -> None:
    """The first one trains the model; each has the cells and the kinds of output committed."""
    for path in NOTEBOOKS:
        committed, found = read(path), executed(path, tmp_path)
        assert [cell.source for cell in found.cells] == [cell.source for cell in committed.cells]
        kinds = [[(o.output_type, *sorted(o.get("data", {}))) for o in outputs(n)]
                 for n in (committed, found)]  # fmt: skip
        assert kinds[0] == kinds[1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "first.png", "first_labels.png", "first.json",
    }  # fmt: skip
