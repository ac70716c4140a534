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
    seen = seen_mask.to(scores.device)[:, None, None]
    offset = seen.to(scores.dtype) * bias
    if mode == "none" or trusty is None:
        return scores - offset
    one = torch.ones((), dtype=scores.dtype, device=scores.device)
    factor = torch.where(
        seen,
        trusty if mode in ("seen", "both") else one,
        1 - trusty if mode in ("unseen", "both") else one,
    )
    return scores * factor - offset if bias_after_gate else (scores - offset) * factor
