"""How the trusty map and the seen bias enter the class scores: pure functions.

Formulas: TagCLIP paper (arXiv 2304.07547), section 3.3, as the released code computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from detectron2.config import CfgNode
from torch import Tensor

from tagclip.config.checks import check_value, choices

__all__ = ["GATE_FORMS", "GATE_MODES", "build_gate", "gate_scores", "trusty_probability"]

GATE_MODES = choices("MODEL.TAGCLIP.TEST.GATE")
GATE_FORMS = choices("MODEL.TAGCLIP.TEST.GATE_FORM")
# Logits of the trusty map beyond this count as this.
_CLIP = 4.0


def build_gate(
    cfg: CfgNode, mode: str | None = None
) -> Callable[[Tensor, Tensor | None, Tensor], Tensor]:
    """Return `gate_scores` with the constants of ``MODEL.TAGCLIP.TEST``.

    Args:
        cfg: see `tagclip.config`.
        mode: instead of ``GATE``.
    """
    test = cfg.MODEL.TAGCLIP.TEST
    return partial(
        gate_scores,
        mode=test.GATE if mode is None else mode,
        bias=test.SEEN_BIAS,
        bias_after_gate=test.BIAS_AFTER_GATE,
        form=test.GATE_FORM,
        scale=test.GATE_SCALE,
    )


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
    form: str = "product",
    scale: float = 0.5,
) -> Tensor:
    """Combine class scores s with the trusty map w.

    ``product``: seen classes become (s - bias) * w and unseen ones s * (1 - w); with
    ``bias_after_gate`` the seen ones become s * w - bias. A side that ``mode`` leaves out keeps the
    factor 1. ``additive``: seen classes become s - bias and unseen ones
    s + scale * clip(t, -4, 4) / 2 with t = log((1 - w) / w); ``lift``: the same with
    clip(t, 0, 4), so that the map never lowers an unseen class (docs/method.md, section 8).

    Args:
        scores: (..., K, H, W) class scores in [0, 1].
        trusty: (..., 1, H, W), P(pixel belongs to a seen class); None leaves only the bias.
        seen_mask: (K,) bool, which classes are seen.
        mode: the gated side: ``none``, ``seen``, ``unseen`` or ``both``; every form but
            ``product`` only asks whether it is ``none``.
        bias: subtracted from the scores of seen classes; negative favours them.
        bias_after_gate: subtract it after the multiplication instead of before.
        form: one of `GATE_FORMS`.
        scale: weight of the map where it is added.

    Returns:
        (..., K, H, W) new tensor; biased and added scores can leave [0, 1].

    Raises:
        ConfigError: ``mode`` or ``form`` is unknown.
    """
    check_value("MODEL.TAGCLIP.TEST.GATE", mode)
    check_value("MODEL.TAGCLIP.TEST.GATE_FORM", form)
    if trusty is None:
        mode = "none"
    if form != "product" and mode != "none":
        return _add(scores, trusty, seen_mask, bias, scale, 0.0 if form == "lift" else -_CLIP)
    factor, offset = _factor_and_offset(scores, trusty, seen_mask, mode, bias)
    if factor is None:
        return scores - offset
    return scores * factor - offset if bias_after_gate else (scores - offset).mul_(factor)


def _add(
    scores: Tensor, trusty: Tensor, seen_mask: Tensor, bias: float, scale: float, lowest: float
) -> Tensor:
    # The clip hides the rounding of w near 0 and 1.
    logit = torch.logit(1 - trusty.float(), eps=1e-6).clamp(lowest, _CLIP)
    unseen = (~seen_mask).to(scores.device, scores.dtype)[:, None, None]
    return scores - (1 - unseen) * bias + unseen * (scale / 2 * logit).to(scores.dtype)


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
