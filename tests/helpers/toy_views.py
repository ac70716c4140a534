"""Logits of one image in two views, one of them mirrored and cut into windows."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from tagclip.modeling.inference.fusion import ScoreFusion, ViewAverage
from tagclip.modeling.inference.gate import gate_scores, trusty_probability
from tagclip.modeling.inference.sliding_window import WindowGrid

CLASSES, SIZE = 7, (40, 52)
SEEN = np.arange(CLASSES) % 3 > 0


def toy_views(seed: int = 0, trusty: bool = True, **gate: Any) -> ViewAverage:
    """Random logits with a gate of `gate_scores`."""
    generator = torch.Generator().manual_seed(seed)
    views = []
    for grid, padded in (
        (WindowGrid.cover(50, 61, 33, 20), (40, 36)),
        (WindowGrid.cover(30, 40, 64, 64), (30, 40)),
    ):
        shape = (len(grid), CLASSES, 5, 4)
        views.append(
            ScoreFusion(
                class_logits=torch.randn(shape, generator=generator) * 3,
                trusty_logits=torch.randn(len(grid), 1, 5, 4, generator=generator) * 2
                if trusty
                else None,
                seen_mask=torch.from_numpy(SEEN),
                grid=grid,
                padded_size=padded,
                gate=partial(gate_scores, **gate),
                trusty_map=partial(trusty_probability, target="novel" if trusty else None),
                workspace_mib=1,
                mirrored=len(grid) > 1,
            )
        )
    return ViewAverage(tuple(views))
