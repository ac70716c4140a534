"""How the trusty map and the seen bias enter the class scores: pure functions.

Formulas: TagCLIP paper (arXiv 2304.07547), section 3.3, as the released code computes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tagclip.errors import ConfigError

__all__ = ["GATE_MODES", "gate_scores", "trusty_probability"]

GATE_MODES = ("none", "seen", "unseen", "both")


def trusty_probability(trusty_logits: Tensor, target: str) -> Tensor:
    """Return w = P(pixel belongs to a seen class), whatever the token was trained on.

    Args:
        trusty_logits: any shape, the logits of the trusty token.
        target: ``seen`` (trained towards 1 on seen pixels) or ``novel`` (1 on unseen pixels).

    Returns:
        Same shape, in [0, 1].
    """
    return torch.sigmoid(-trusty_logits if target == "novel" else trusty_logits)


def gate_scores(
    scores: Tensor,
    trusty: Tensor | None,
    seen_mask: Tensor,
    *,
    mode: str = "both",
    bias: float = 0.1,
    bias_after_gate: bool = False,
) -> Tensor:
    """Combine class scores s with the trusty map w.

    Seen classes become (s - bias) * w and unseen ones s * (1 - w); with ``bias_after_gate``
    the seen ones become s * w - bias. A side that ``mode`` leaves out keeps the factor 1.

    Args:
        scores: (..., K, H, W) class scores in [0, 1].
        trusty: (..., 1, H, W), P(pixel belongs to a seen class); None leaves only the bias.
        seen_mask: (K,) bool, which classes are seen.
        mode: the gated side: ``none``, ``seen``, ``unseen`` or ``both``.
        bias: subtracted from the scores of seen classes.
        bias_after_gate: subtract it after the multiplication instead of before.

    Returns:
        (..., K, H, W) new tensor; biased scores can be negative.

    Raises:
        ConfigError: ``mode`` is none of `GATE_MODES`.
    """
    if mode not in GATE_MODES:
        raise ConfigError(
            f"MODEL.TAGCLIP.TEST.GATE: found {mode!r}, expected one of {', '.join(GATE_MODES)}"
        )
    if trusty is None:
        mode = "none"
    factor, offset = _factor_and_offset(scores, trusty, seen_mask, mode, bias)
    if factor is None:
        return scores - offset
    return scores * factor - offset if bias_after_gate else (scores - offset).mul_(factor)


def _factor_and_offset(
    scores: Tensor, trusty: Tensor | None, seen_mask: Tensor, mode: str, bias: float
) -> tuple[Tensor | None, Tensor | float]:
    """What multiplies the scores (None: nothing does), and what is subtracted."""
    modes = {True: ("seen", "both"), False: ("unseen", "both")}
    if _is_uniform(seen_mask):
        seen = bool(seen_mask[:1].any())
        offset = bias if seen else 0.0
        if mode not in modes[seen]:
            return None, offset
        return trusty if seen else 1 - trusty, offset
    seen = seen_mask.to(scores.device, scores.dtype)[:, None, None]
    if mode == "none":
        return None, seen * bias
    # w of a class is 0 + 1 * w, 1 - w is 1 - 1 * w, no factor is 1 + 0 * w: exact, and for a CPU
    # several times as fast as a choice between planes.
    sign = seen * (mode in modes[True]) - (1 - seen) * (mode in modes[False])
    return (trusty * sign).add_(1 - sign.clamp(min=0)), seen * bias


def _is_uniform(seen_mask: Tensor) -> bool:
    """Whether all classes are on one side, as on a CPU, where they mostly come one by one.

    Not asked on a GPU, which would be waited for, nor in graphs, which hold for any mask.
    """
    if seen_mask.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return bool((seen_mask == seen_mask[:1]).all())
