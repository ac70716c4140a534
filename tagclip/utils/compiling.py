"""Whether `torch.compile` finds what it needs on this machine."""

from __future__ import annotations

import torch

from tagclip.errors import ConfigError
from tagclip.utils.text import error_text

__all__ = ["check_compiler"]


def check_compiler(device: str) -> None:
    """Compile the smallest function there is, before minutes are spent on a model.

    Args:
        device: ``MODEL.DEVICE``; a CPU needs a C++ compiler, a GPU Triton and a C compiler.

    Raises:
        ConfigError: there is no compiler, or it cannot build what torch writes.
    """
    number = torch.ones(1, device=device)
    try:
        torch.compile(torch.neg)(number)
    # torch wraps whatever its backend raises.
    except RuntimeError as error:
        reason = error_text(error).partition(" Set TORCHDYNAMO_VERBOSE")[0]
        raise ConfigError(
            f"MODEL.COMPILE: found True, but torch.compile cannot be used on {device} "
            f"({reason:.300}); install a C++ compiler such as g++ (CXX names another one), or set "
            "MODEL.COMPILE False"
        ) from error
