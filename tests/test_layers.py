"""A package imports only from the floors below its own; siblings do not import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# Highest first. The root itself, with its public names, is the facade of all and exempt.
FLOORS = (
    "__main__",
    "cli",
    "bulk export demo analysis scoring",
    "predictor engine",
    "checkpoint evaluation",
    "modeling",
    "data",
    "visualization",
    "config structures",
    "utils projects solver",
    "errors",
)
DEPTH = {name: depth for depth, names in enumerate(FLOORS) for name in names.split()}
# Wrong imports that are still there; one that has gone must leave this list, too.
ALLOWED: set[tuple[str, str]] = set()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of every import of tagclip, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        prefix = ""
        if isinstance(node, ast.ImportFrom):
            prefix = f"{'.' * node.level}{node.module or ''}."
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (prefix + alias.name for alias in node.names)
            yield from ((node.lineno, name) for name in names if name.startswith(("tagclip.", ".")))


def offenders(root: Path) -> dict[tuple[str, str], str]:
    """(File, package) -> message, of every import that the rule forbids."""
    found = {}
    for path in sorted((root / "tagclip").rglob("*.py")):
        file = path.relative_to(root).as_posix()
        own = file.split("/")[1].removesuffix(".py")
        if own == "__init__":
            continue
        if own not in DEPTH:
            found[file, own] = f"{file}: {own} is on no floor"
            continue
        for line, name in imports(path):
            package = name.split(".")[1]
            is_allowed = package in (own, "register") or DEPTH.get(package, 0) > DEPTH[own]
            if not is_allowed:
                found[file, package] = f"{file}:{line}: {own} imports {name}"
    return found


def test_every_import_goes_downwards(repository: Path) -> None:
    found = offenders(repository)
    assert not [message for key, message in found.items() if key not in ALLOWED]
    assert found.keys() >= ALLOWED, "remove what is mended from ALLOWED"


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        (
            "data/mapper.py",
            "from tagclip.engine import x",
            "data/mapper.py:2: data imports tagclip.",
        ),
        ("utils/a.py", "import tagclip.solver", "utils/a.py:2: utils imports tagclip.solver"),
        (
            "utils/a.py",
            "from tagclip import load_config",
            "utils/a.py:2: utils imports tagclip.load",
        ),
        ("demo/b/c.py", "from .. import engine", "demo/b/c.py:2: demo imports ...engine"),
        ("attic/a.py", "", "attic/a.py: attic is on no floor"),
        ("data/a.py", "from tagclip import register", ""),
        ("cli/a.py", "import tagclip, tagclip.predictor", ""),
        ("predictor.py", "import tagclip.errors, tagclip.predictor", ""),
        ("__init__.py", "from tagclip.engine import x", ""),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, line: str, message: str) -> None:
    path = tmp_path / "tagclip" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"def late():\n    {line or 'pass'}\n")
    messages = list(offenders(tmp_path).values())
    assert len(messages) == bool(message)
    assert all(found.startswith(f"tagclip/{message}") for found in messages)
