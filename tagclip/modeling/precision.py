"""The floating-point types that a device computes with quickly."""

from __future__ import annotations

import logging

import torch

from tagclip.config.checks import check_value
from tagclip.errors import ConfigError

__all__ = ["check_training_precision", "has_instructions", "inference_dtype"]

logger = logging.getLogger(__name__)

# In the names that torch gives to what a CPU has, such as avx512_bf16 and amx_fp16.
_CPU_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def has_instructions(device: str, dtype: torch.dtype) -> bool:
    """Whether a device multiplies matrices of a half-precision type with instructions of its own.

    Args:
        device: ``cpu`` or a GPU of CUDA that this machine has.
        dtype: bfloat16 or float16.
    """
    if torch.device(device).type == "cuda":
        # From Ampere on; older cards compute bfloat16 in float32.
        return dtype is torch.float16 or torch.cuda.get_device_capability(device) >= (8, 0)
    # torch 2.9 and newer say.
    found = getattr(torch.cpu, "get_capabilities", dict)()
    return any(_CPU_NAMES[dtype] in name and present is True for name, present in found.items())


def inference_dtype(name: str, device: str) -> torch.dtype:
    """Return the type that ``TEST.DTYPE`` asks for on a device.

    Args:
        name: ``float32``, ``bfloat16``, ``float16`` or ``auto``: bfloat16 where there are
            instructions for it, else float32, which is logged.
        device: ``MODEL.DEVICE``.

    Raises:
        ConfigError: the name is unknown, or float16 is asked of a CPU without instructions for it.
    """
    check_value("TEST.DTYPE", name)
    if name == "auto":
        found = "bfloat16" if has_instructions(device, torch.bfloat16) else "float32"
        logger.info("TEST.DTYPE auto: %s on %s", found, device)
        return getattr(torch, found)
    dtype = getattr(torch, name)
    if dtype is not torch.float32:
        _check(f"TEST.DTYPE: found {name}", dtype, device, "float32 or auto")
    return dtype


def check_training_precision(enabled: bool, name: str, device: str) -> None:
    """Refuse ``SOLVER.AMP`` in float16 on a CPU without instructions for it.

    Args:
        enabled: ``SOLVER.AMP.ENABLED``.
        name: ``SOLVER.AMP.DTYPE``.
        device: ``MODEL.DEVICE``.

    Raises:
        ConfigError: see above.
    """
    if enabled:
        _check(f"SOLVER.AMP.DTYPE: found {name}", getattr(torch, name), device, "SOLVER.AMP off")


def _check(found: str, dtype: torch.dtype, device: str, instead: str) -> None:
    if has_instructions(device, dtype):
        return
    if dtype is torch.float16 and torch.device(device).type == "cpu":
        half = " or bfloat16" if has_instructions(device, torch.bfloat16) else ""
        raise ConfigError(
            f"{found} on a CPU without instructions for it, expected {instead}{half}; it would "
            "take several times as long as float32"
        )
    logger.warning("%s on a device without instructions for it: float32 is quicker", found)
