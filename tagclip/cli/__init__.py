"""The command ``tagclip``: every tool under one name; only the one asked for is imported."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Container
from types import ModuleType

import tagclip
from tagclip.cli.commands import COMMANDS, RENAMED
from tagclip.utils.text import did_you_mean

__all__ = ["main"]

MODULES = {name: module for group in COMMANDS.values() for name, (module, _) in group.items()}


def main() -> None:
    """Run the command that the command line names.

    Raises:
        SystemExit: there is no such command, or as the command ends.
    """
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(_format_help())
        return
    if words[0] == "--version":
        print(f"tagclip {tagclip.__version__}")
        return
    family = [name for name in MODULES if name.startswith(f"{words[0]} ")]
    if family and words[0] not in MODULES and words[1:2] in ([], ["-h"], ["--help"]):
        print(_format_help(family))
        return
    # A name has one word or two.
    names = [" ".join(words[:2]), words[0]]
    if family and words[1:] and not words[1].startswith("-"):
        names.pop()
    for name in names:
        if name in MODULES:
            # The usage that argparse prints begins with it.
            sys.argv = [f"tagclip {name}", *words[len(name.split()) :]]
            _load(MODULES[name]).invoke_main()
            return
    sys.exit(_unknown(words))


def _load(module: str) -> ModuleType:
    spec = importlib.util.find_spec(f"tagclip.{module}")
    # As `python FILE` does: a script may import the files beside it.
    sys.path.insert(0, os.path.dirname(spec.origin))
    return importlib.import_module(spec.name)


def _format_help(names: Container[str] = ()) -> str:
    """Text that lists the commands of some names, or all."""
    width = max(map(len, MODULES))
    lines = ["usage: tagclip COMMAND ...", "", "tagclip COMMAND --help tells more."]
    for title, group in COMMANDS.items():
        shown = [
            f"  {n:{width}}  {line}" for n, (_, line) in group.items() if not names or n in names
        ]
        lines += ["", f"{title}:", *shown] if shown else []
    return "\n".join(lines)


def _unknown(words: list[str]) -> str:
    if words[0] in RENAMED:
        return f"tagclip {words[0]}: is called tagclip {RENAMED[words[0]]} now; run that"
    family = [name for name in MODULES if name.split()[0] == words[0]]
    found = " ".join(words[: 2 if family else 1])
    hint = "" if family else did_you_mean(found, MODULES)
    expected = ", ".join(family) or "one of those that tagclip --help lists"
    return f"tagclip: found the command {found!r}{hint or f', expected {expected}'}"
