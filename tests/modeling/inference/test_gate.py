"""The trusty gate and the seen bias against a truth table in plain Python."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tagclip.errors import ConfigError
from tagclip.modeling.inference.gate import GATE_FORMS, GATE_MODES, Gate, trusty_probability

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
    found = Gate(mode=mode, bias=0.1, bias_after_gate=after)(scores, trusty, SEEN)
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
    found = Gate(mode=mode, bias=0.25)(scores, None, SEEN)
    assert torch.equal(found, scores - 0.25 * SEEN[:, None, None])


def test_scores_are_not_changed_in_place() -> None:
    scores, trusty = torch.rand(3, 4, 5), torch.rand(1, 4, 5)
    before = scores.clone()
    Gate()(scores, trusty, SEEN)
    assert torch.equal(scores, before)


def test_both_targets_give_the_probability_of_seen() -> None:
    logits = torch.tensor([-3.0, 0.0, 2.0])
    assert torch.allclose(trusty_probability(logits, "seen"), torch.sigmoid(logits))
    assert torch.allclose(trusty_probability(logits, "novel"), 1 - torch.sigmoid(logits))


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="GATE: found .all., expected .none. or .seen."):
        Gate(mode="all")


@pytest.mark.parametrize(("form", "lowest"), [("additive", -4.0), ("lift", 0.0)])
def test_added_maps_truth_table(form: str, lowest: float) -> None:
    scores = torch.rand(3, 4, 5, dtype=torch.float64)
    trusty = torch.rand(1, 4, 5)
    trusty[0, 0, :4] = torch.tensor([0.0, 1.0, 1e-4, 0.5])
    found = Gate(mode="both", bias=0.2, form=form, scale=0.6)(scores, trusty, SEEN)
    for k, y, x in itertools.product(range(3), range(4), range(5)):
        w = trusty[0, y, x].double().item()
        logit = math.log((1 - w) / w) if 0 < w < 1 else math.copysign(math.inf, 0.5 - w)
        added = -0.2 if SEEN[k] else 0.6 * min(max(logit, lowest), 4.0) / 2
        assert found[k, y, x].item() == pytest.approx(scores[k, y, x].item() + added, abs=1e-5)


@pytest.mark.parametrize("form", GATE_FORMS)
def test_every_form_can_be_switched_off(form: str) -> None:
    scores, trusty = torch.rand(3, 4, 5), torch.rand(1, 4, 5)
    found = Gate(mode="none", bias=0.25, form=form)(scores, trusty, SEEN)
    assert torch.equal(found, scores - 0.25 * SEEN[:, None, None])


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="GATE_FORM: found 'sum', expected 'product' or 'add"):
        Gate(form="sum")


@pytest.mark.parametrize("form", GATE_FORMS)
@pytest.mark.parametrize(("mode", "after"), list(itertools.product(GATE_MODES, (False, True))))
def test_what_the_bias_takes_from_a_seen_class(mode: str, after: bool, form: str) -> None:
    """The map's share of it, or all of it, as the scores themselves show."""
    scores, trusty = torch.rand(3, 4, 5).double(), torch.rand(1, 4, 5).double()
    without, with_bias = (
        Gate(mode, form, bias=bias, bias_after_gate=after)(scores, trusty, SEEN)[0]
        for bias in (0.0, 1.0)
    )
    gate = Gate(mode, form, bias_after_gate=after)
    expected = trusty[0] if gate.weighs_bias else torch.ones(4, 5).double()
    torch.testing.assert_close(without - with_bias, expected)


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("trusty", [True, False])
@given(
    mode=st.sampled_from(GATE_MODES),
    form=st.sampled_from(GATE_FORMS),
    bias=st.floats(-0.5, 0.5),
    scale=st.floats(0, 2),
    after=st.booleans(),
)
@settings(deadline=None)
def test_terms_are_the_gate(
    seen: bool, trusty: bool, mode: str, form: str, bias: float, scale: float, after: bool
) -> None:
    gate = Gate(mode, form, bias, scale, after)
    generator = torch.Generator().manual_seed(0)
    scores, weight = torch.rand(3, 4, 5, generator=generator), torch.rand(4, 5, generator=generator)
    factor, offset = gate.terms(weight if trusty else None, seen)
    expected = gate(scores, weight[None] if trusty else None, torch.full((3,), seen))
    torch.testing.assert_close(scores * factor + offset, expected, atol=1e-6, rtol=0)
