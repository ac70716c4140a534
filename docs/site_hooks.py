"""mkdocs.yml's hooks: what the site takes from outside docs/, and links that hold in both places.

A file of docs/ has its path below docs/ on the site, every other one its path in the repository. A
link to a file that is on the site leads there; one to a file of the repository that is not becomes
that file's path.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from pathlib import Path
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "PERFORMANCE.md", "CHANGELOG.md", "THIRD_PARTY.md", "datasets/README.md")
PATTERNS = ("projects/README.md", "projects/*/README.md", "projects/*/assets/*.png")
# Code is passed over; a link is [text](target) or ![text](target), with or without #anchor.
_LINK = re.compile(
    r"(?P<code>^(?P<fence>```+).*?^(?P=fence)$|`[^`\n]*`(?!\]))"
    r"|(?P<image>!?)\[(?P<text>[^]\n]*)\]\((?P<target>[^)#\s:]*)(?P<anchor>#[^)\s]*)?\)",
    re.MULTILINE | re.DOTALL,
)
_NOTEBOOK_LINK = re.compile(r'href="(?P<target>[^":#]+)(?P<anchor>#[^"]*|)"')
_FROM_ELSEWHERE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(?:https?:)?//")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/ and the help of all commands."""
    paths = [
        *PAGES,
        *(p.relative_to(REPOSITORY) for name in PATTERNS for p in REPOSITORY.glob(name)),
    ]
    for path in map(str, paths):
        files.append(File.generated(config, path, abs_src_path=str(REPOSITORY / path)))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make the links of the repository those of the site."""
    uri = page.file.src_uri
    source = page.file.abs_src_path or str(Path(config.docs_dir) / uri)
    folder = Path(source).parent.relative_to(REPOSITORY).as_posix()

    def replace(link: re.Match[str]) -> str:
        if link["code"] or not link["target"]:
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, link["target"]))
        if found := find_page(path, files):
            target = posixpath.relpath(found.src_uri, posixpath.dirname(uri) or ".")
            return f"{link['image']}[{link['text']}]({target}{link['anchor'] or ''})"
        if not (REPOSITORY / path).exists():
            return link[0]  # mkdocs names it.
        text = link["text"].strip("`")
        return f"`{path}`" if path.endswith(text) else f"{link['text']} (`{path}`)"

    return _LINK.sub(replace, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Do so in a notebook, of which no Markdown passes."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    folder = Path(page.file.abs_src_path).parent.relative_to(REPOSITORY).as_posix()

    def replace(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link["target"]))
        found = find_page(path, files)
        return f'href="{found.url_relative_to(page.file)}{link["anchor"]}"' if found else link[0]

    return _NOTEBOOK_LINK.sub(replace, html)


def find_page(path: str, files: Files) -> File | None:
    """Return the page of a file or folder of the repository, if there is one."""
    pages = (files.get_file_from_path(p.removeprefix("docs/")) for p in (path, f"{path}/README.md"))
    return next(filter(None, pages), None)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse what a browser would load from another host."""
    if found := _FROM_ELSEWHERE.search(output):
        raise PluginError(f"{page.file.src_uri}: found {found[0]}..., expected files of the site")
    return output


def commands_page() -> str:
    """Return Markdown: what every command of ``tagclip`` says of itself."""
    from tagclip.cli.commands import COMMANDS

    lines = ["# Commands", "", "What `tagclip --help` lists, and `tagclip COMMAND --help` says."]
    for title, group in COMMANDS.items():
        lines += ["", f"## {title}"]
        for name in group:
            lines += ["", f"### tagclip {name}", "", "```text", help_of(name).strip(), "```"]
    return "\n".join(lines) + "\n"


def help_of(name: str) -> str:
    """Return the help of one command."""
    from tagclip.cli.commands import load_command

    with mock.patch.object(sys, "path", [*sys.path]), mock.patch.dict(os.environ, COLUMNS="88"):
        parser = load_command(name).make_parser()
        parser.prog = f"tagclip {name}"
        return parser.format_help()
