"""Logits of one image in two views, one of them mirrored and cut into windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tagclip.modeling.inference.fusion import ScoreFusion
from tagclip.modeling.inference.gate import Gate
from tagclip.modeling.inference.windows import ViewLogits, WindowGrid

CLASSES, SIZE = 7, (40, 52)
SEEN = np.arange(CLASSES) % 3 > 0


def toy_views(
    seed: int = 0, trusty: bool = True, margins: bool = False, **gate: Any
) -> ScoreFusion:
    """Random logits, margins and a `Gate`."""
    generator = torch.Generator().manual_seed(seed)
    views = []
    for grid, padded in (
        (WindowGrid.cover(50, 61, 33, 20), (40, 36)),
        (WindowGrid.cover(30, 40, 64, 64), (30, 40)),
    ):
        logits = torch.randn(len(grid), CLASSES, 5, 4, generator=generator) * 3
        trusty_logits = torch.randn(len(grid), 1, 5, 4, generator=generator) * 2 if trusty else None
        # Log densities are far from 0.
        own = torch.randn(len(grid), 1, 5, 4, generator=generator) * 90 if margins else None
        views.append(ViewLogits(logits, trusty_logits, grid, padded, len(grid) > 1, own))
    target = "novel" if trusty else None
    return ScoreFusion(tuple(views), torch.from_numpy(SEEN), Gate(**gate), target, workspace_mib=1)
