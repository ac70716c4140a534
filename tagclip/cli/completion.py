"""Completion in the shell: ``eval "$(register-python-argcomplete tagclip)"``.

The shell runs ``tagclip`` with what is typed so far in COMP_LINE at every press of the key, so that
nothing is imported but the parser of the command that is typed.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import argcomplete
from argcomplete.completers import FilesCompleter

from tagclip.cli.commands import MODULES, family, find_command, load_command

__all__ = ["complete"]

_YAML = FilesCompleter(("yaml", "yml"))


def complete() -> None:
    """Print what the word at the cursor can become, and end the process."""
    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    words = line.split()[1:]
    if not line[-1:].isspace():
        # The word at the cursor is not complete.
        words = words[:-1]
    name = find_command(words)
    parser = argparse.ArgumentParser() if name is None else load_command(name).make_parser()
    completers = {"config_file": _configs, "opts": partial(_keys, words)}
    for action in parser._actions:
        if completer := completers.get(action.dest):
            action.completer = completer
    if not words:
        parser.add_argument("--version", action="version")
        _add_commands(parser, MODULES, 0)
    elif len(words) == 1 and (members := family(words[0])):
        _add_commands(parser, members, 1)
    count = len(name.split()) if name else len(words)
    # Where the arguments begin: 1 is behind the program.
    os.environ["_ARGCOMPLETE"] = str(1 + count)
    argcomplete.autocomplete(parser, always_complete_options=name is not None)


def _add_commands(parser: argparse.ArgumentParser, names: Iterable[str], place: int) -> None:
    """Let the words at a place of commands' names come next."""
    commands = parser.add_subparsers(parser_class=argparse.ArgumentParser)
    for word in dict.fromkeys(name.split()[place] for name in names):
        commands.add_parser(word)


def _configs(prefix: str, **_: Any) -> list[str]:
    """Files, and names of the model zoo."""
    from tagclip import model_zoo

    return [*_YAML(prefix), *model_zoo.list()]


def _keys(words: list[str], **_: Any) -> list[str]:
    """Names of config keys; none where the value of one comes next."""
    # Reading yaml would take half a second.
    table = Path(__file__).parents[1] / "config" / "keys.yaml"
    names = re.findall(r"(?m)^  ([A-Z][A-Z0-9_.]*):$", table.read_text(encoding="utf-8"))
    return [] if words[-1] in names else names
