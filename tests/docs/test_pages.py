"""The documents: links and anchors lead somewhere, commands exist, every page is on the site."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.documents import navigation, pages
from helpers.paths import REPOSITORY

from tagclip.cli.commands import MODULES

PAGES = [REPOSITORY / page for page in pages()]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^]\n]*\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"\btagclip ([a-z][a-z0-9-]*)(?: ([a-z][a-z0-9-]*))?")


def prose(path: Path) -> str:
    """The text of a page without its code."""
    return re.sub(r"`[^`\n]+`", "code", _FENCE.sub("", path.read_text(encoding="utf-8")))


@cache
def anchors(path: Path) -> set[str]:
    """Anchors of a page's titles, as repository hosts and mkdocs.yml make them."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        assert slug not in found, f"{path}: two titles {title!r}"
        found.add(slug)
    return found


def broken_links(path: Path) -> Iterator[str]:
    """Links of a page, relative ones, that lead nowhere."""
    for link in _LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (
            anchor and (target.suffix != ".md" or anchor not in anchors(target))
        ):
            yield link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    assert not list(broken_links(path))


@pytest.mark.parametrize(
    "link", ["no.md", "no/", "#no", "../README.md#no", "images/gallery.png#no"]
)
def test_a_broken_link_is_found(link: str, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "page.md"
    (page.parent / "images").mkdir(parents=True)
    (page.parent / "images" / "gallery.png").touch()
    (tmp_path / "README.md").write_text("# Yes\n```text\n# no\n```\n")
    page.write_text(f"# Page\n[a](../README.md#yes) [b](#page) `[c](x.md)` [d]({link})\n")
    assert list(broken_links(page)) == [link]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_commands_exist(path: Path) -> None:
    """But in what has been."""
    if path.name == "CHANGELOG.md":
        return
    text = path.read_text(encoding="utf-8")
    blocks = [block for language, block in _FENCE.findall(text) if language == "sh"]
    spans = re.findall(r"`([^`\n]+)`", _FENCE.sub("", text))
    for first, second in _COMMAND.findall("\n".join([*blocks, *spans])):
        assert first in MODULES or f"{first} {second}" in MODULES, f"tagclip {first} {second}"


def test_the_readme_is_short() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 180
    assert "```mermaid" not in "".join(path.read_text(encoding="utf-8") for path in PAGES)


def test_every_page_is_in_the_navigation() -> None:
    """Those of docs/ and those that docs/site_hooks.py adds."""
    listed = navigation()
    assert len(set(listed)) == len(listed)
    expected = {
        path.relative_to(REPOSITORY).as_posix().removeprefix("docs/")
        for path in [*PAGES, *REPOSITORY.glob("docs/**/*.ipynb")]
        if not path.is_relative_to(REPOSITORY / "tests")
    }
    # Made when the site is built.
    assert set(listed) == expected | {"reference/commands.md"}
