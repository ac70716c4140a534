#!/usr/bin/env python
"""Generate MiniBench, train the recommended model on it, evaluate and draw.

tagclip minibench

What lies in output/minibench is removed first. tagclip minibench data, report,
table and clip are commands of their own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tagclip.utils.cli import check_output, run_tool
from tagclip.utils.run_lock import LOCK_NAME
from tagclip.utils.stopping import explained
from tagclip.utils.tool_parser import ToolParser

OUTPUT = Path("output/minibench")
CONFIG = "minibench/tagclip_minibench_noun_fence_board_convtrust.yaml"
# The same command would remove it.
GOES_ON = (
    f"what is trained is in {OUTPUT}: tagclip train --config-file {CONFIG} --resume OUTPUT_DIR "
    f"{OUTPUT} goes on with it, and tagclip minibench report draws it; tagclip minibench begins "
    "anew"
)


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    return ToolParser(__doc__)


def invoke_main() -> None:
    """Parse the command line, do all steps."""
    make_parser().parse_args()
    run_tool(run)


def run() -> None:
    """Do what the commands minibench data, train and minibench report do.

    Raises:
        TagCLIPError: a step fails, or another run is at work in the folder; the later steps are
            left out.
    """
    from tagclip.engine.interruptions import part_of_more
    from tagclip.engine.own_folder import own_folder
    from tagclip.tools import train_net
    from tagclip.tools.minibench import generate_data, make_report

    generate_data.write(None)
    # Before the earlier run goes.
    check_output("OUTPUT_DIR", OUTPUT, is_folder=True)
    with own_folder(OUTPUT):
        for path in OUTPUT.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK_NAME:
                path.unlink()
        words = ["--config-file", CONFIG, "OUTPUT_DIR", str(OUTPUT)]
        with explained(GOES_ON):
            with part_of_more():
                train_net.start(train_net.parse_args(words))
            make_report.report(OUTPUT)


if __name__ == "__main__":
    invoke_main()
