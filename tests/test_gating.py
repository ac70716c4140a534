"""The trusty gate and the seen bias against a truth table in plain Python."""

from __future__ import annotations

import itertools

import pytest
import torch

from tagclip.errors import ConfigError
from tagclip.modeling.gating import GATE_MODES, gate_scores, trusty_probability

SEEN = torch.tensor([True, False, True])


def naive_gate(
    score: float, trusty: float, seen: bool, mode: str, bias: float, after: bool
) -> float:
    factor = 1.0
    if seen and mode in ("seen", "both"):
        factor = trusty
    if not seen and mode in ("unseen", "both"):
        factor = 1.0 - trusty
    if not seen:
        return score * factor
    return score * factor - bias if after else (score - bias) * factor


@pytest.mark.parametrize(("mode", "after"), list(itertools.product(GATE_MODES, (False, True))))
def test_gate_truth_table(mode: str, after: bool) -> None:
    scores = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    trusty = torch.rand(2, 1, 4, 5, dtype=torch.float64)
    found = gate_scores(scores, trusty, SEEN, mode=mode, bias=0.1, bias_after_gate=after)
    for n, k, y, x in itertools.product(range(2), range(3), range(4), range(5)):
        expected = naive_gate(
            scores[n, k, y, x].item(),
            trusty[n, 0, y, x].item(),
            bool(SEEN[k]),
            mode,
            0.1,
            after,
        )
        assert found[n, k, y, x].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("mode", GATE_MODES)
def test_without_a_trusty_map_only_the_bias_remains(mode: str) -> None:
    scores = torch.rand(3, 4, 5)
    found = gate_scores(scores, None, SEEN, mode=mode, bias=0.25)
    assert torch.equal(found, scores - 0.25 * SEEN[:, None, None])


def test_scores_are_not_changed_in_place() -> None:
    scores, trusty = torch.rand(3, 4, 5), torch.rand(1, 4, 5)
    before = scores.clone()
    gate_scores(scores, trusty, SEEN)
    assert torch.equal(scores, before)


def test_both_targets_give_the_probability_of_seen() -> None:
    logits = torch.tensor([-3.0, 0.0, 2.0])
    assert torch.allclose(trusty_probability(logits, "seen"), torch.sigmoid(logits))
    assert torch.allclose(trusty_probability(logits, "novel"), 1 - torch.sigmoid(logits))


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"GATE: found 'all', expected one of none, seen"):
        gate_scores(torch.rand(3, 2, 2), None, SEEN, mode="all")
