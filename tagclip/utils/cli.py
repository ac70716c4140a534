"""How command-line tools end: one line for what a user can mend, exit code 1."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from tagclip.errors import ConfigError, TagCLIPError

__all__ = ["check_gpus", "run_tool"]


def run_tool(main: Callable[..., Any], *args: Any) -> None:
    """Call ``main`` and exit; a `TagCLIPError` becomes one line on stderr.

    ``TAGCLIP_DEBUG=1`` shows the traceback instead.

    Args:
        main: the tool.
        args: its arguments.
    """
    try:
        main(*args)
    except TagCLIPError as error:
        if os.environ.get("TAGCLIP_DEBUG") == "1":
            raise
        sys.exit(f"{type(error).__name__}: {error}")


def check_gpus(wanted: int) -> None:
    """Refuse to start more processes than there are GPUs; one process runs anywhere.

    Raises:
        ConfigError: there are fewer GPUs.
    """
    import torch

    found = torch.cuda.device_count()
    if wanted > max(found, 1):
        raise ConfigError(
            f"--num-gpus: found {found} GPUs on this machine, expected {wanted}; "
            f"use --num-gpus {max(found, 1)}"
        )
