"""The command ``tagclip``: every tool under one name; only the one asked for is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Container

import tagclip
from tagclip.cli.commands import (
    COMMANDS,
    MODULES,
    RENAMED,
    family,
    find_command,
    load_command,
)
from tagclip.errors import OutputError
from tagclip.utils.text import did_you_mean

__all__ = ["main"]


def main() -> None:
    """Run the command that the command line names, or complete one for a shell.

    Raises:
        SystemExit: there is no such command, as the command ends, or with 1 if what it prints goes
            to a file that cannot be written.
    """
    if "_ARGCOMPLETE" in os.environ:
        from tagclip.cli.completion import complete

        complete()
    try:
        _run(sys.argv[1:])
    except BrokenPipeError:
        if not _has_lost_reader("\n"):
            raise
        sys.exit(1)
    finally:
        _has_lost_reader()


def _run(words: list[str]) -> None:
    members = family(words[0]) if words else []
    if not words or words[0] in ("-h", "--help"):
        print(_format_help())
    elif words[0] == "--version":
        print(f"tagclip {tagclip.__version__}")
    elif members and words[0] not in MODULES and words[1:2] in ([], ["-h"], ["--help"]):
        print(_format_help(members))
    elif name := find_command(words):
        # The usage that argparse prints begins with it.
        sys.argv = [f"tagclip {name}", *words[len(name.split()) :]]
        load_command(name).invoke_main()
    else:
        sys.exit(_unknown(words))


def _has_lost_reader(text: str = "") -> bool:
    """Whether nobody reads stdout any more, as behind ``| head -1``; stdout then leads nowhere.

    Args:
        text: is written to find out; without it that shows only where something is still buffered.

    Raises:
        SystemExit: the shell leads stdout to a file that cannot be written.
    """
    try:
        print(end=text, flush=True)
    except OSError as error:
        # What is left is written at the end, where Python would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return True
        sys.exit(str(OutputError(error.errno, error.strerror, "stdout")))
    return False


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
    names = [name for name in MODULES if name.split()[0] == words[0]]
    found = " ".join(words[: 2 if names else 1])
    hint = "" if names else did_you_mean(found, MODULES)
    expected = ", ".join(names) or "one of those that tagclip --help lists"
    return f"tagclip: found the command {found!r}{hint or f', expected {expected}'}"
