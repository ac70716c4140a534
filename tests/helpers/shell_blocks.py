"""The shell commands of a Markdown page, run in the order in which they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from helpers.paths import REPOSITORY

# A block behind "<!-- not run: why -->" is for readers.
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>.+?) -->\n+)?```sh\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """One shell block: the line of its first command, its text, why it is not run ("": it is)."""

    line: int
    text: str
    why_not: str


def shell_blocks(page: str) -> list[Block]:
    """Find the ```sh blocks of a page."""
    found = []
    for match in _BLOCK.finditer(page):
        line = page.count("\n", 0, match.start("text")) + 1
        found.append(Block(line, match["text"], match["why"] or ""))
    return found


def run_blocks(blocks: list[Block], folder: Path, page: str) -> None:
    """Run blocks in one folder that looks like the repository to them; fail at the first error.

    Commands find `python`, `tagclip` and the package of this checkout; what the repository holds is
    linked, so that relative paths of its files are right.
    """
    for name in ("configs", "projects", "tools"):
        (folder / name).symlink_to(REPOSITORY / name)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    for block in blocks:
        if block.why_not:
            continue
        # Line by line into the output, so that a failure shows which command it was.
        result = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", block.text],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert not result.returncode, (
            f"{page}:{block.line}: exit {result.returncode}\n{result.stdout[-2000:]}\n"
            f"{result.stderr[-3000:]}"
        )
