"""Logits of small images of every kind, and their scores in float64, from the formulas alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tagclip.modeling.inference.fusion import ScoreFusion
from tagclip.modeling.inference.gate import Gate
from tagclip.modeling.inference.windows import ViewLogits, WindowGrid

# (canvas height and width, window, stride, mirrored); patches have 4 pixels.
SCENES = {
    "one window": [(3, 9, 16, 16, False)],
    "one pixel": [(1, 1, 4, 4, False)],
    "windows side by side": [(5, 21, 8, 8, False)],
    "windows three deep": [(11, 13, 9, 3, False)],
    "mirrored windows": [(3, 9, 6, 4, True)],
    "a little larger than the result": [(2, 75, 32, 20, False)],
    "much larger than the result": [(23, 70, 32, 20, True)],
    "views": [(7, 13, 6, 4, True), (3, 9, 9, 9, False), (2, 5, 9, 9, True)],
}
GATES = {
    "both": {},
    "both, bias after": {"bias_after_gate": True},
    "seen": {"mode": "seen", "bias": -0.2},
    "seen, bias after": {"mode": "seen", "bias_after_gate": True},
    "unseen": {"mode": "unseen"},
    "none": {"mode": "none"},
    "additive": {"form": "additive", "scale": 0.7},
    "additive, none": {"form": "additive", "mode": "none"},
    "lift": {"form": "lift", "mode": "unseen"},
}


def fusion_case(
    scene: str, classes: int = 7, target: str | None = "seen", seed: int = 0, **gate: Any
) -> ScoreFusion:
    """Random logits; every third class is unseen; ``target`` None: no trusty token."""
    generator = torch.Generator().manual_seed(seed)
    views = []
    for height, width, window, stride, mirrored in SCENES[scene]:
        grid = WindowGrid.cover(height, width, window, stride)
        rows, columns = -(-grid.window_height // 4), -(-grid.window_width // 4)
        logits = torch.randn(len(grid), classes + 1, rows, columns, generator=generator) * 4
        # Beyond the clip of the gates that add them.
        logits[:, classes:] *= 2
        trusty = None if target is None else logits[:, classes:]
        # Slices: the strides of windows and classes are not those of a tensor of their own.
        padded = (4 * rows, 4 * columns)
        views.append(ViewLogits(logits[:, :classes], trusty, grid, padded, mirrored))
    seen = torch.arange(classes) % 3 > 0
    return ScoreFusion(tuple(views), seen, Gate(**gate), target, workspace_mib=1)


def reference_scores(
    fusion: ScoreFusion, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray | None]:
    """(K, H, W) scores and (H, W) trusty map, or None, in float64."""
    planes = [_view_planes(fusion, view, size) for view in fusion.views]
    mean = sum(planes) / len(planes)
    return (mean, None) if fusion.trusty_target is None else (mean[:-1], mean[-1])


def assert_near_reference(
    fusion: ScoreFusion,
    size: tuple[int, int],
    labels: torch.Tensor,
    scores: torch.Tensor,
    trusty: torch.Tensor | None,
) -> np.ndarray:
    """Compare a result with float64; return (H, W) bool, where the best class is clear."""
    planes, expected_trusty = reference_scores(fusion, size)
    ranked = np.sort(planes, axis=0)
    np.testing.assert_allclose(scores, ranked[-1], atol=2e-6, rtol=0)
    is_clear = np.ones(size, dtype=bool)
    if len(planes) > 1:
        is_clear = ranked[-1] - ranked[-2] > 4e-6
    assert is_clear.mean() > 0.9
    assert np.array_equal(labels.numpy()[is_clear], planes.argmax(0)[is_clear])
    assert (trusty is None) == (fusion.trusty_target is None)
    if trusty is not None:
        np.testing.assert_allclose(trusty, expected_trusty, atol=2e-6, rtol=0)
    return is_clear


def _view_planes(fusion: ScoreFusion, view: ViewLogits, size: tuple[int, int]) -> np.ndarray:
    """Scores of one view, and the trusty map as the last plane, if any."""
    grid, extra = view.grid, fusion.trusty_target is not None
    total = np.zeros((len(fusion.seen_mask) + extra, grid.height, grid.width))
    count = np.zeros((grid.height, grid.width))
    for index, (rows, columns) in enumerate(grid):
        cut = np.s_[: grid.window_height, : grid.window_width]
        scores = _sigmoid(_resized(view.class_logits[index], view.padded_size)[:, *cut])
        if extra:
            logits = _resized(view.trusty_logits[index], view.padded_size)[0][cut]
            seen = _sigmoid(-logits if fusion.trusty_target == "novel" else logits)
            scores = np.concatenate([_gated(fusion, scores, seen), seen[None]])
        else:
            scores = _gated(fusion, scores, None)
        total[:, rows, columns] += scores
        count[rows, columns] += 1
    found = _resized(total / count, size)
    return found[..., ::-1] if view.mirrored else found


def _gated(fusion: ScoreFusion, scores: np.ndarray, w: np.ndarray | None) -> np.ndarray:
    """docs/method.md, sections 4 and 8, class by class."""
    gate, found = fusion.gate, []
    mode = "none" if w is None else gate.mode
    for score, seen in zip(scores, fusion.seen_mask.tolist(), strict=True):
        bias = gate.bias if seen else 0
        if mode == "none":
            found.append(score - bias)
        elif gate.form == "product":
            factor = 1
            if mode == "both" or mode == ("seen" if seen else "unseen"):
                factor = w if seen else 1 - w
            after = gate.bias_after_gate
            found.append(score * factor - bias if after else (score - bias) * factor)
        else:
            lowest = 0 if gate.form == "lift" else -4
            added = gate.scale * np.clip(np.log((1 - w) / w), lowest, 4) / 2
            found.append(score - bias if seen else score + added)
    return np.stack(found)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def _resized(planes: Any, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, align_corners False, by a matrix for either axis."""
    planes = np.asarray(planes, dtype=np.float64)
    rows, columns = (_weights(n, m) for n, m in zip(planes.shape[1:], size, strict=True))
    return rows @ planes @ columns.T


def _weights(length: int, size: int) -> np.ndarray:
    """(size, length)."""
    found = np.zeros((size, length))
    for i in range(size):
        place = max((i + 0.5) * length / size - 0.5, 0)
        first = min(int(place), length - 1)
        found[i, first] += 1 - (place - int(place))
        found[i, min(first + 1, length - 1)] += place - int(place)
    return found
