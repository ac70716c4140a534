#!/usr/bin/env python
"""List all configs by the names that --config-file and _BASE_ take.

tagclip configs
"""

from __future__ import annotations

from tagclip import model_zoo
from tagclip.utils.tool_parser import ToolParser


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    return ToolParser(__doc__)


def invoke_main() -> None:
    """Parse the command line and print the names."""
    make_parser().parse_args()
    print(*model_zoo.list(), sep="\n")


if __name__ == "__main__":
    invoke_main()
