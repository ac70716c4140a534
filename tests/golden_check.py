#!/usr/bin/env python
"""Compare this library with golden tensors of the official TagCLIP.

python tests/golden_check.py FILE.pt [--verbose]

One line per group of tensors, in the order of the forward pass: the largest difference and the
tolerance. Exit code 1 when a group is over its tolerance, missing in the file, or was not compared.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from golden.forward import check_backbone, check_decoder, check_other_heads
from golden.inference import check_scores, check_sliding_window
from golden.models import workspace
from golden.report import Golden, Report
from golden.settings import (
    check_names,
    check_optimizer,
    check_positions,
    check_schedule,
    check_text,
)
from golden.training import check_training, check_transductive


def check(data: Mapping[str, Any]) -> Report:
    """Compare everything in a golden file.

    Args:
        data: the flat dict that the file holds.
    """
    golden = Golden(data)
    report = Report(golden)
    with workspace(golden) as space:
        check_names(space, report)
        check_positions(space, report)
        model = space.model()
        features = check_backbone(space, model, report)
        check_decoder(space, model, features, report)
        check_scores(space, model, report)
        check_other_heads(space, model, features, report)
        check_sliding_window(space, model, report)
        check_training(space, report)
        check_transductive(space, report)
        check_text(space, report)
        check_optimizer(space, model, report)
        check_schedule(space, report)
    report.finish()
    return report


def main(arguments: list[str] | None = None) -> int:
    """Check a file and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE.pt", help="golden file")
    parser.add_argument("--verbose", action="store_true", help="one line per tensor, too")
    args = parser.parse_args(arguments)
    if not os.path.isfile(args.file):
        parser.error(f"{args.file}: no such golden file")
    report = check(torch.load(args.file, weights_only=True))
    print("\n".join(report.lines(args.verbose)))
    failed = report.failed
    summary = f"{len(report.groups)} groups compared, {len(failed)} failed"
    print(f"{summary}: {', '.join(failed)}" if failed else summary)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
