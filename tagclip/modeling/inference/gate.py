"""How the trusty map and the seen bias enter the class scores.

Formulas: TagCLIP paper (arXiv 2304.07547), section 3.3, as the released code computes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor

from tagclip.config.checks import check_value, choices

__all__ = ["GATE_FORMS", "GATE_MODES", "Gate", "trusty_probability"]

GATE_MODES = choices("MODEL.TAGCLIP.TEST.GATE")
GATE_FORMS = choices("MODEL.TAGCLIP.TEST.GATE_FORM")
# Logits of the trusty map beyond this count as this.
_CLIP = 4.0


def trusty_probability(trusty_logits: Tensor, target: str) -> Tensor:
    """Return w = P(pixel belongs to a seen class), whatever the token was trained on.

    Args:
        trusty_logits: any shape, the logits of the trusty token.
        target: ``seen`` (trained towards 1 on seen pixels) or ``novel`` (1 on unseen pixels).

    Returns:
        Same shape, in [0, 1].
    """
    return torch.sigmoid(-trusty_logits if target == "novel" else trusty_logits)


@dataclass(frozen=True)
class Gate:
    """Combines class scores s with the trusty map w.

    ``product``: seen classes become (s - bias) * w and unseen ones s * (1 - w); with
    ``bias_after_gate`` the seen ones become s * w - bias. A side that ``mode`` leaves out keeps the
    factor 1. ``additive``: seen classes become s - bias and unseen ones
    s + scale * clip(t, -4, 4) / 2 with t = log((1 - w) / w); ``lift``: the same with
    clip(t, 0, 4), so that the map never lowers an unseen class (docs/method.md, section 8).

    Attributes:
        mode: the gated side: ``none``, ``seen``, ``unseen`` or ``both``; every form but
            ``product`` only asks whether it is ``none``.
        form: one of `GATE_FORMS`.
        bias: subtracted from the scores of seen classes; negative favours them.
        scale: weight of the map where it is added.
        bias_after_gate: subtract the bias after the multiplication instead of before.

    Raises:
        ConfigError: ``mode`` or ``form`` is unknown, or ``bias`` or ``scale`` no number in the
            range of its key.
    """

    mode: str = "both"
    form: str = "product"
    bias: float = 0.1
    scale: float = 0.5
    bias_after_gate: bool = False

    def __post_init__(self) -> None:
        check_value("MODEL.TAGCLIP.TEST.GATE", self.mode)
        check_value("MODEL.TAGCLIP.TEST.GATE_FORM", self.form)
        check_value("MODEL.TAGCLIP.TEST.SEEN_BIAS", self.bias)
        check_value("MODEL.TAGCLIP.TEST.GATE_SCALE", self.scale)
        check_value("MODEL.TAGCLIP.TEST.BIAS_AFTER_GATE", self.bias_after_gate)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Gate:
        """Read ``MODEL.TAGCLIP.TEST``."""
        test = cfg.MODEL.TAGCLIP.TEST
        return cls(test.GATE, test.GATE_FORM, test.SEEN_BIAS, test.GATE_SCALE, test.BIAS_AFTER_GATE)

    def multiplies(self, seen: bool) -> bool:
        """Whether the trusty map multiplies the scores of the seen or of the unseen classes."""
        return self.form == "product" and self.mode in ("seen" if seen else "unseen", "both")

    @property
    def adds(self) -> bool:
        """Whether the trusty map is added to the scores of the unseen classes."""
        return self.form != "product" and self.mode != "none"

    @property
    def weighs_bias(self) -> bool:
        """Whether the trusty map multiplies the bias, too, instead of leaving it as it is."""
        return self.multiplies(seen=True) and not self.bias_after_gate

    @property
    def lowest(self) -> float:
        """Lower clip of the map's logit where it is added."""
        return 0.0 if self.form == "lift" else -_CLIP

    def terms(self, trusty: Tensor | None, seen: bool) -> tuple[Tensor | float, Tensor | float]:
        """Return f and o of one side: the gated score of its classes is s * f + o.

        Args:
            trusty: of any shape, P(pixel belongs to a seen class); None leaves only the bias.
            seen: whether of the seen classes.

        Returns:
            Tensors of that shape, or numbers where they do not depend on the map.
        """
        bias = self.bias if seen else 0.0
        if trusty is not None and self.adds and not seen:
            return 1.0, self._added(trusty)
        if trusty is None or not self.multiplies(seen):
            return 1.0, -bias
        factor = trusty if seen else 1 - trusty
        return factor, -bias if self.bias_after_gate or not seen else -bias * factor

    def __call__(self, scores: Tensor, trusty: Tensor | None, seen_mask: Tensor) -> Tensor:
        """Gate scores.

        Args:
            scores: (..., K, H, W) class scores in [0, 1].
            trusty: (..., 1, H, W), P(pixel belongs to a seen class); None leaves only the bias.
            seen_mask: (K,) bool, which classes are seen.

        Returns:
            (..., K, H, W) new tensor; biased and added scores can leave [0, 1].
        """
        if trusty is not None and self.adds:
            return self._add(scores, trusty, seen_mask)
        factor, offset = self._factor_and_offset(scores, trusty, seen_mask)
        if factor is None:
            return scores - offset
        # The released code subtracts first, so that the map weighs the bias, too.
        if self.bias_after_gate:
            return scores * factor - offset
        return (scores - offset).mul_(factor)

    def _add(self, scores: Tensor, trusty: Tensor, seen_mask: Tensor) -> Tensor:
        unseen = (~seen_mask).to(scores.device, scores.dtype)[:, None, None]
        added = unseen * self._added(trusty).to(scores.dtype)
        return scores - (1 - unseen) * self.bias + added

    def _added(self, trusty: Tensor) -> Tensor:
        """What the unseen classes get."""
        # The clip hides the rounding of w near 0 and 1.
        logit = torch.logit(1 - trusty.float(), eps=1e-6).clamp(self.lowest, _CLIP)
        return self.scale / 2 * logit

    def _factor_and_offset(
        self, scores: Tensor, trusty: Tensor | None, seen_mask: Tensor
    ) -> tuple[Tensor | None, Tensor | float]:
        """What multiplies the scores (None: nothing does), and what is subtracted."""
        multiplied = {
            side: trusty is not None and self.multiplies(seen=side) for side in (True, False)
        }
        if _is_uniform(seen_mask):
            seen = bool(seen_mask[:1].any())
            offset = self.bias if seen else 0.0
            if not multiplied[seen]:
                return None, offset
            return trusty if seen else 1 - trusty, offset
        seen = seen_mask.to(scores.device, scores.dtype)[:, None, None]
        if not any(multiplied.values()):
            return None, seen * self.bias
        # w of a class is 0 + 1 * w, 1 - w is 1 - 1 * w, no factor is 1 + 0 * w: exact, and for a
        # CPU several times as fast as a choice between planes.
        sign = seen * multiplied[True] - (1 - seen) * multiplied[False]
        return (trusty * sign).add_(1 - sign.clamp(min=0)), seen * self.bias


def _is_uniform(seen_mask: Tensor) -> bool:
    """Whether all classes are on one side, as on a CPU, where they mostly come one by one.

    Not asked on a GPU, which would be waited for, nor in graphs, which hold for any mask.
    """
    if seen_mask.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return bool((seen_mask == seen_mask[:1]).all())
