"""The code blocks of a Markdown page: run in the order in which they stand there, or only read.

A ```sh or ```python block is run; behind "<!-- not run: why -->" it is for readers. A ```text block
is what the block above it in its section prints, or a part of it; behind
"<!-- not compared: why -->" it is not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from helpers.paths import REPOSITORY

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>not run|not compared): (?P<why>[^\n]+?) -->\n+)?"
    r"```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_HEADING = re.compile(r"^#+ ", re.MULTILINE)
_NUMBER = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?")
_RULE = re.compile(r"[-:]{3,}")
# Commands that a block may use besides bash's own where it is only read.
_REAL = ("bash", "cat", "env")
_STANDS_IN = """
command_not_found_handle() {
    # What starts another command is passed over.
    while [ $# -gt 0 ]; do
        case $1 in tagclip | bash | env) "$@"; return ;; esac
        shift
    done
}
export -f command_not_found_handle
"""


class Block(NamedTuple):
    """One block of a page.

    Attributes:
        line: of its first command.
        text: the commands.
        why_not: why it is not run; "": it is.
        kind: ``sh`` or ``python``.
        prints: the ```text block below it; "": there is none.
    """

    line: int
    text: str
    why_not: str
    kind: str = "sh"
    prints: str = ""


def code_blocks(page: str) -> list[Block]:
    """Find the ```sh and ```python blocks of a page, each with the ```text that it prints.

    Raises:
        ValueError: a ```text block is below none that is run in its section, or a comment is of no
            use there.
    """
    found: list[Block] = []
    end = 0
    for match in _BLOCK.finditer(page):
        between, end = page[end : match.start()], match.end()
        line = page.count("\n", 0, match.start("text")) + 1
        kind, mark, why = match["kind"], match["mark"], match["why"] or ""
        if mark and (mark == "not run") != (kind in ("sh", "python")):
            raise ValueError(f"line {line}: {mark!r} above a block of {kind!r}")
        if kind in ("sh", "python"):
            found.append(Block(line, match["text"], why, kind))
        elif kind == "text" and not mark:
            is_first = not found or found[-1].why_not or found[-1].prints
            if is_first or _HEADING.search(between):
                raise ValueError(f"line {line}: a text that no block above prints")
            found[-1] = found[-1]._replace(prints=match["text"])
    return found


def shell_blocks(page: str) -> list[Block]:
    """Find the ```sh blocks of a page."""
    return [block for block in code_blocks(page) if block.kind == "sh"]


def run_blocks(blocks: list[Block], folder: Path, page: str) -> dict[int, str]:
    """Run blocks in one folder; fail at the first error.

    Commands find `python`, `tagclip` and the package of this checkout, as in an environment into
    which it was installed, and nothing else of it.

    Returns:
        Line of a block -> what it printed.
    """
    scripts = folder / ".bin"
    scripts.mkdir(exist_ok=True)
    # -P: the folder is not a place of modules, as it is none to an installed command.
    for name, words in (("python", ""), ("tagclip", "-P -m tagclip ")):
        _write_script(scripts / name, f'exec "{sys.executable}" {words}"$@"')
    path = os.pathsep.join([str(scripts), os.environ["PATH"]])
    # A checkout has its data in one place; here, as with a wheel, they are below the folder.
    places = {"PYTHONPATH": str(REPOSITORY), "DETECTRON2_DATASETS": str(folder / "datasets")}
    environment = {**os.environ, "PATH": path, **places}
    printed = {}
    for block in blocks:
        if block.why_not:
            continue
        # Line by line into the output, so that a failure shows which command it was.
        shell = ("bash", "-euxo", "pipefail", "-c")
        command = ("python", "-P", "-c") if block.kind == "python" else shell
        result = subprocess.run(
            [*command, block.text], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert not result.returncode, (
            f"{page}:{block.line}: exit {result.returncode}\n{result.stdout[-2000:]}\n"
            f"{result.stderr[-3000:]}"
        )
        printed[block.line] = result.stdout
    return printed


def _write_script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def masked(text: str) -> list[str]:
    """Lines without their numbers, blanks and rules of tables, which depend on the numbers."""
    return [" ".join(_RULE.sub("-", _NUMBER.sub("#", line)).split()) for line in text.splitlines()]


def commands_of(block: Block, folder: Path) -> list[list[str]]:
    """The words of every `tagclip` in a ```sh block, as bash hands them over; nothing is run.

    Files that the block writes with `cat` are written to the folder.
    """
    scripts, record = folder / ".read", folder / ".read" / "record"
    scripts.mkdir(exist_ok=True)
    for name in _REAL:
        path = subprocess.run(["which", name], capture_output=True, text=True, check=True)
        (scripts / name).unlink(missing_ok=True)
        (scripts / name).symlink_to(path.stdout.strip())
    _write_script(scripts / "tagclip", f"printf '%s\\0' \"$@\" $'\\n' >> '{record}'")
    record.write_bytes(b"")
    subprocess.run(
        [scripts / "bash", "-c", _STANDS_IN + block.text],
        cwd=folder,
        env={"PATH": str(scripts), "SLURM_NNODES": "2", "SLURM_NODEID": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    commands: list[list[str]] = [[]]
    for word in record.read_text().split("\0")[:-1]:
        commands.append([]) if word == "\n" else commands[-1].append(word)
    return commands[:-1]


def metrics_in(text: str, names: list[str]) -> dict[str, list[float]]:
    """Unsigned numbers of the rows of a table that begin with one of some names."""
    rows = ([cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines())
    return {
        row[0]: [float(cell) for cell in row[1:] if re.fullmatch(r"\d+\.\d+", cell)]
        for row in rows
        if row[0] in names
    }
