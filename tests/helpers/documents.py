"""The pages of the repository, and the navigation of the site that they make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from helpers.paths import REPOSITORY

_GLOBS = ("*.md", "docs/**/*.md", "projects/**/*.md", "datasets/*.md", "tests/**/*.md")


def navigation() -> list[str]:
    """What mkdocs.yml lists, in its order: paths below docs/, of others below the repository."""
    # The base loader constructs texts of whatever the yaml names.
    site = yaml.load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)
    return list(_leaves(site["nav"]))


def _leaves(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else _leaves(value)


def pages() -> list[str]:
    """Paths of all pages below the repository; those of the site first, in its order."""
    named = [place for name in navigation() for place in (f"docs/{name}", name)]
    files = {str(p.relative_to(REPOSITORY)) for glob in _GLOBS for p in REPOSITORY.glob(glob)}
    return sorted(files, key=lambda page: (named.index(page) if page in named else 999, page))
