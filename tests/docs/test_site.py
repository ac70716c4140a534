"""docs/site_hooks.py, and the site as `make docs` builds it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from helpers.paths import REPOSITORY
from helpers.tiny_run import load_tool

pytest.importorskip("mkdocs", reason="mkdocs is not installed: make docs")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    return load_tool(REPOSITORY / "docs" / "site_hooks.py")


@pytest.mark.parametrize(
    ("source", "markdown", "expected"),
    [
        ("README.md", "[a](docs/export.md)", "[a](export.md)"),
        ("README.md", "[a](docs/export.md#int8)", "[a](export.md#int8)"),
        ("README.md", "![a](docs/images/gallery.png)", "![a](images/gallery.png)"),
        ("docs/export.md", "[a](../README.md#x)", "[a](README.md#x)"),
        ("docs/export.md", "[a](../projects/WebDemo/README.md)", "[a](projects/WebDemo/README.md)"),
        ("docs/export.md", "[a](../projects/WebDemo)", "[a](projects/WebDemo/README.md)"),
        ("projects/WebDemo/README.md", "[a](../../docs/export.md)", "[a](../../export.md)"),
        # Files that are not on the site.
        ("docs/export.md", "[setup.py](../setup.py)", "`setup.py`"),
        ("docs/export.md", "[`setup.py`](../setup.py)", "`setup.py`"),
        ("docs/export.md", "[the set-up](../setup.py)", "the set-up (`setup.py`)"),
        # Not touched.
        ("docs/export.md", "[a](https://b.c/d.md)", "[a](https://b.c/d.md)"),
        ("docs/export.md", "[a](#int8)", "[a](#int8)"),
        ("docs/export.md", "`[a](../setup.py)`", "`[a](../setup.py)`"),
        ("docs/export.md", "```text\n[a](../setup.py)\n```", "```text\n[a](../setup.py)\n```"),
        ("docs/export.md", "[a](no.md)", "[a](no.md)"),
    ],
)
def test_links_are_those_of_the_site(
    hooks: ModuleType, source: str, markdown: str, expected: str
) -> None:
    config = SimpleNamespace(docs_dir=str(REPOSITORY / "docs"))
    assert hooks.on_page_markdown(markdown, page_of(source), config, files()) == expected


def page_of(source: str) -> SimpleNamespace:
    """The page of a file of the repository."""
    file = site_file(source.removeprefix("docs/"))
    file.abs_src_path = str(REPOSITORY / source)
    return SimpleNamespace(file=file)


def site_file(name: str) -> Any:
    from mkdocs.structure.files import File

    return File(name, "docs", "site", use_directory_urls=False)


def files() -> Any:
    from mkdocs.structure.files import Files

    names = ("README.md", "export.md", "images/gallery.png", "projects/WebDemo/README.md")
    return Files([site_file(name) for name in names])


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("../export.md#int8", "../export.html#int8"),
        ("../../README.md#x", "../index.html#x"),
        ("../../projects/WebDemo", "../projects/WebDemo/index.html"),
        ("https://b.c/d.md", "https://b.c/d.md"),
        ("#Words", "#Words"),
        ("no.md", "no.md"),
    ],
)
def test_links_of_notebooks_are_those_of_the_site(
    hooks: ModuleType, link: str, expected: str
) -> None:
    page = page_of("docs/notebooks/b.ipynb")
    html = hooks.on_page_content(f'<a href="{link}">a</a>', page, None, files())
    assert html == f'<a href="{expected}">a</a>'
    other = page_of("docs/export.md")
    assert hooks.on_page_content('<a href="README.md">', other, None, files()).count("README.md")


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://unpkg.com/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/x.css">',
        "<img alt='' src=http://a.b/c.png>",
    ],
)
def test_nothing_is_loaded_from_another_host(hooks: ModuleType, tag: str) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="x.md"))
    with pytest.raises(Exception, match="^x.md: found <"):
        hooks.on_post_page(f"<p>{tag}", page, None)
    mine = '<a href="https://a.b"><script src="assets/x.js"></script>'
    assert hooks.on_post_page(mine, page, None) == mine


@pytest.mark.slow
def test_the_site_is_built(tmp_path: Path) -> None:
    """Strictly: a link, an anchor or a docstring that is not in order ends it."""
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert not result.returncode, result.stdout + result.stderr
    home = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'src="images/gallery.png"' in home and 'href="projects/MiniBench/index.html' in home
    predictor = (tmp_path / "reference" / "predictor.html").read_text(encoding="utf-8")
    assert "set_vocabulary" in predictor
    commands = (tmp_path / "reference" / "commands.html").read_text(encoding="utf-8")
    assert len(re.findall("usage: tagclip ", commands)) == commands.count("<h3 ")
    notebook = (tmp_path / "notebooks" / "first_steps.html").read_text(encoding="utf-8")
    assert {"../first_steps.html", "own_words.html"} <= {*re.findall('href="(.*?)"', notebook)}
    assert "data:image/jpeg;base64," in notebook
    # Sources are named, not linked.
    architecture = (tmp_path / "architecture.html").read_text(encoding="utf-8")
    assert "tests/test_layers.py</code>" in architecture and '.py"' not in architecture
