"""Labels, scores and trusty map of an image in one pass of a GPU, without a plane per class.

The same numbers as `ScoreFusion`'s own way, to rounding; above the logits there are the (H, W)
results and a table of some hundred bytes. Never run on a GPU so far: its arithmetic is tested in
Triton's interpreter, its machine code only for registers and spills.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain

import torch
from torch import Tensor

from tagclip.modeling.inference.gate import Gate
from tagclip.modeling.inference.windows import ViewLogits, WindowGrid
from tagclip.utils.text import error_text

__all__ = ["TILE", "can_fuse", "fused_labels", "is_available"]

# Pixels of a row and classes that one program holds; no result depends on them. One pixel per
# thread of four warps.
TILE = (128, 16)
# (2 * position + 1) * size stays below 2^31.
_LONGEST = 2**15 - 1


@lru_cache(maxsize=None)
def is_available(device: torch.device) -> bool:
    """Whether `fused_labels` runs on a device: a GPU, with triton and what triton needs.

    The first question about a GPU compiles the kernel and logs which way labels are made.
    """
    if device.type != "cuda":
        return False
    logger = logging.getLogger(__name__)
    if find_spec("triton") is None:
        logger.warning("labels are made by torch alone, which takes longer: triton is not there")
        return False
    logits = torch.zeros(1, 1, 1, 1, device=device)
    view = ViewLogits(logits, logits, WindowGrid.cover(1, 1, 1, 1), (1, 1))
    seen_mask = torch.ones(1, dtype=torch.bool, device=device)
    try:
        fused_labels((view,), seen_mask, Gate(), "seen", (1, 1))
    except torch.OutOfMemoryError:
        # Says nothing about the next image.
        raise
    # No C compiler, an old card or driver: triton has an exception for each, and some of others.
    except Exception as error:
        logger.warning(
            "labels are made by torch alone, which takes longer: found no way to run Triton's "
            "kernel on %s (%.300s); it needs a C compiler such as gcc and Python's headers",
            device,
            error_text(error),
        )
        return False
    logger.info("labels are made by one Triton kernel on %s", device)
    return True


def can_fuse(views: Sequence[ViewLogits], size: tuple[int, int]) -> bool:
    """Whether `fused_labels` answers for these views: where they are, and their lengths.

    Args:
        views: as of `ScoreFusion`.
        size: (height, width) of the result in pixels.
    """
    lengths = [size]
    for view in views:
        lengths += [(view.grid.height, view.grid.width), view.padded_size]
    return max(chain(*lengths)) <= _LONGEST and is_available(views[0].class_logits.device)


def fused_labels(
    views: Sequence[ViewLogits],
    seen_mask: Tensor,
    gate: Gate,
    trusty_target: str | None,
    size: tuple[int, int],
    tile: tuple[int, int] = TILE,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Best class of every pixel, as `ScoreFusion.labels`; all tensors on one device.

    Args:
        views: at least one; the same K classes in each, all with trusty logits or none.
        seen_mask: (K,) bool.
        gate: see `Gate`.
        trusty_target: ``seen`` or ``novel``; see `trusty_probability`.
        size: (height, width) of the result in pixels, see `can_fuse`.
        tile: pixels and classes that a program holds, powers of 2; no bit depends on it.

    Returns:
        (H, W) int32 labels; (H, W) float32 scores, nan where a class has nan; (H, W) float32,
        P(pixel belongs to a seen class), None without trusty logits.
    """
    # Here: CPUs do without triton, which takes a moment to import.
    from tagclip.modeling.inference.fusion_kernel import fuse

    device, (height, width), (pixels, classes) = seen_mask.device, size, tile
    has_trusty = views[0].trusty_logits is not None
    # The kernel reads addresses: these tensors have to live until it is launched.
    logits = [(_dense(view.class_logits), _dense(view.trusty_logits)) for view in views]
    labels = torch.empty(size, dtype=torch.int32, device=device)
    scores = torch.empty(size, device=device)
    trusty = torch.empty(size, device=device) if has_trusty else None
    is_product, mode = gate.form == "product", gate.mode
    # Does nothing for tensors on a CPU, where the interpreter runs.
    with torch.cuda.device_of(seen_mask):
        fuse[height, -(-width // pixels)](
            labels,
            scores,
            trusty if has_trusty else scores,
            seen_mask,
            _table(views, logits).to(device),
            len(views),
            len(seen_mask),
            height,
            width,
            int(is_product and mode in ("seen", "both")),
            int(is_product and mode in ("unseen", "both")),
            int(gate.weighs_bias),
            int(not is_product and mode != "none"),
            -1 if trusty_target == "novel" else 1,
            float(gate.bias),
            gate.scale / 2,
            0.0 if gate.form == "lift" else -4.0,
            HAS_TRUSTY=has_trusty,
            PIXELS=pixels,
            CLASSES=classes,
            num_warps=max(1, min(pixels // 32, 8)),
            num_stages=1,
        )
    return labels, scores, trusty


def _dense(logits: Tensor | None) -> Tensor | None:
    """Logits whose h x w planes are float32 without gaps: nearly always they themselves."""
    if logits is None or (logits.dtype == torch.float32 and logits[0, 0].is_contiguous()):
        return logits
    return logits.float().contiguous()


def _table(
    views: Sequence[ViewLogits], logits: Sequence[tuple[Tensor, Tensor | None]]
) -> Tensor:
    """Where the logits are and how they lie in the image, int64, as `fusion_kernel.fuse` reads."""
    from tagclip.modeling.inference.fusion_kernel import FIELDS

    rows: list[int] = []
    origins: list[int] = []
    for view, (class_logits, trusty_logits) in zip(views, logits, strict=True):
        grid, start = view.grid, len(views) * len(FIELDS) + len(origins)
        origins += (*grid.tops, *grid.lefts)
        values = {
            "class_address": class_logits.data_ptr(),
            "trusty_address": 0 if trusty_logits is None else trusty_logits.data_ptr(),
            "window_stride": class_logits.stride(0),
            "class_stride": class_logits.stride(1),
            "trusty_stride": 0 if trusty_logits is None else trusty_logits.stride(0),
            "rows": class_logits.shape[2],
            "columns": class_logits.shape[3],
            "padded_height": view.padded_size[0],
            "padded_width": view.padded_size[1],
            "canvas_height": grid.height,
            "canvas_width": grid.width,
            "window_height": grid.window_height,
            "window_width": grid.window_width,
            "top_count": len(grid.tops),
            "left_count": len(grid.lefts),
            "tops": start,
            "lefts": start + len(grid.tops),
            "mirrored": int(view.mirrored),
        }
        rows += (values[field] for field in FIELDS)
    return torch.tensor(rows + origins)
