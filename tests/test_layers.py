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
    "prediction pretrained",
    "checkpoint evaluation",
    "modeling",
    "data",
    "visualization",
    "config structures",
    "model_zoo",
    "utils projects solver",
    "errors",
)
DEPTH = {name: depth for depth, names in enumerate(FLOORS) for name in names.split()}
# Wrong imports that are still there; one that has gone must leave this list, too.
ALLOWED: set[tuple[str, str]] = set()


# What everybody may ask of the root.
OF_ALL = ("register", "__version__")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of every import of tagclip, also of those inside functions, of attributes of
    the root and of literal names that `importlib.import_module` gets."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    roots = {
        alias.asname or "tagclip"
        for node in nodes
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "tagclip" or (alias.name.startswith("tagclip.") and not alias.asname)
    }
    for node in nodes:
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            prefix = f"{'.' * node.level}{node.module or ''}."
            names = [prefix + alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"tagclip.{node.attr}"] if node.value.id in roots else []
        elif isinstance(node, ast.Call) and node.args:
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            text = getattr(node.args[0], "value", None)
            if function in ("import_module", "__import__") and isinstance(text, str):
                names = [text]
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
            is_allowed = package in (own, *OF_ALL) or DEPTH.get(package, 0) > DEPTH[own]
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
        (
            "data/a.py",
            "import tagclip; tagclip.load_config()",
            "data/a.py:2: data imports tagclip.l",
        ),
        (
            "data/a.py",
            "import tagclip as t; x = t.engine",
            "data/a.py:2: data imports tagclip.engi",
        ),
        (
            "data/a.py",
            "import tagclip.errors; tagclip.engine",
            "data/a.py:2: data imports tagclip.engine",
        ),
        (
            "data/a.py",
            "importlib.import_module('tagclip.engine.trainer')",
            "data/a.py:2: data imports tagclip.engine.trainer",
        ),
        ("data/a.py", "import_module('tagclip.cli')", "data/a.py:2: data imports tagclip.cli"),
        ("data/a.py", "importlib.import_module('tagclip.errors' + x)", ""),
        ("data/a.py", "importlib.import_module('tagclip.data.x'), other.engine", ""),
        ("data/a.py", "import tagclip; tagclip.register(), tagclip.__version__", ""),
        ("data/a.py", "import tagclip.config as config; config.engine", ""),
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
