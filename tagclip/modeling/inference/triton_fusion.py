"""Labels, scores and trusty map of an image in one pass of a GPU, without a plane per class.

The same numbers as `ScoreFusion`'s own way, to rounding; above the logits there are the (H, W)
results and a table of some hundred bytes. It has never run on a GPU: its arithmetic is tested in
Triton's interpreter, its machine code for registers and spills alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from itertools import chain

import torch
from torch import Tensor

from tagclip.modeling.inference.gate import Gate
from tagclip.modeling.inference.windows import ViewLogits, WindowGrid
from tagclip.utils.text import error_text

__all__ = ["TILE", "can_fuse", "fused_labels", "is_available"]

# Classes and columns of a canvas that one program holds, a column per thread of one warp.
TILE = (16, 32)
# (2 * position + 1) * size stays below 2^31.
_LONGEST = 2**15 - 1


@cache
def is_available(device: torch.device) -> bool:
    """Whether `fused_labels` runs on a device: a GPU, with triton and what triton needs.

    The first question about a GPU compiles the kernel and logs which way labels are made.
    """
    if device.type != "cuda":
        return False
    logger = logging.getLogger(__name__)
    try:
        logits = torch.zeros(1, 1, 1, 1, device=device)
        view = ViewLogits(logits, logits, WindowGrid.cover(1, 1, 1, 1), (1, 1))
        seen_mask = torch.ones(1, dtype=torch.bool, device=device)
        # Reading a result waits for it: a launch that fails says so here.
        fused_labels((view,), seen_mask, Gate(), "seen", (1, 1))[1].item()
    except torch.OutOfMemoryError:
        # Says nothing about the next image.
        raise
    # No triton, no C compiler, an old card: there is an exception for each, of several packages.
    except Exception as error:
        logger.warning(
            "labels are made by torch's own kernels, which takes longer: Triton's cannot run on %s "
            "(%.300s); it needs the package triton, a C compiler and Python's headers",
            device,
            error_text(error),
        )
        return False
    logger.info("labels are made by one Triton kernel on %s", device)
    return True


def can_fuse(views: Sequence[ViewLogits], size: tuple[int, int]) -> bool:
    """Whether `fused_labels` answers: by the device, the lengths and the trusty logits of views.

    Args:
        views: see `ScoreFusion`.
        size: (height, width) of the result in pixels.
    """
    lengths = [size]
    for view in views:
        lengths += [(view.grid.height, view.grid.width), view.padded_size]
    if max(chain(*lengths)) > _LONGEST or len({view.trusty_logits is None for view in views}) > 1:
        return False
    return is_available(views[0].class_logits.device)


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
        tile: classes and columns that a program holds, powers of 2, the latter at least 2; no bit
            depends on it.

    Returns:
        (H, W) int32 labels; (H, W) float32 scores, nan where a class has nan; (H, W) float32,
        P(pixel belongs to a seen class), None without trusty logits.
    """
    # Here: CPUs do without triton, which takes a moment to import.
    from tagclip.modeling.inference.fusion_kernel import fuse

    device, (height, width), (classes, columns) = seen_mask.device, size, tile
    tile_width = _tile_width(views, width, columns)
    has_trusty = views[0].trusty_logits is not None
    # The kernel reads addresses: these tensors have to live until it is launched.
    logits = [(_dense(view.class_logits), _dense(view.trusty_logits)) for view in views]
    labels = torch.empty(size, dtype=torch.int32, device=device)
    scores = torch.empty(size, device=device)
    trusty = torch.empty(size, device=device) if has_trusty else None
    # Does nothing for tensors on a CPU, where the interpreter runs.
    with torch.cuda.device_of(seen_mask):
        fuse[height, -(-width // tile_width)](
            labels,
            scores,
            trusty if has_trusty else scores,
            seen_mask.contiguous(),
            _table(views, logits).to(device),
            len(views),
            len(seen_mask),
            height,
            width,
            tile_width,
            int(gate.multiplies(seen=True)),
            int(gate.multiplies(seen=False)),
            int(gate.weighs_bias),
            int(gate.adds),
            -1 if trusty_target == "novel" else 1,
            float(gate.bias),
            gate.scale / 2,
            gate.lowest,
            HAS_TRUSTY=has_trusty,
            CLASSES=classes,
            COLUMNS=columns,
            num_warps=max(1, columns // 32),
            num_stages=1,
        )
    return labels, scores, trusty


def _dense(logits: Tensor | None) -> Tensor | None:
    """Logits whose h x w planes are float32 without gaps: nearly always they themselves."""
    if logits is None or (logits.dtype == torch.float32 and logits[0, 0].is_contiguous()):
        return logits
    return logits.float().contiguous()


def _tile_width(views: Sequence[ViewLogits], width: int, columns: int) -> int:
    """How many pixels of the result read at most so many columns of any view.

    T of them read at most ceil((T - 1) * length_in / length_out) + 2.
    """
    found = columns
    for view in views:
        if view.grid.width != width:
            found = min(found, 1 + (columns - 2) * width // view.grid.width)
    return found


def _table(views: Sequence[ViewLogits], logits: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
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
