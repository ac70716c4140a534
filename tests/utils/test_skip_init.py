"""Modules without random values: nothing is drawn, and loading makes them whole."""

from __future__ import annotations

import torch
from torch import nn

from tagclip.utils.skip_init import SkipInit


def build() -> nn.Module:
    attention = nn.MultiheadAttention(8, 2)
    linear, embedding = nn.Linear(8, 4), nn.Embedding(5, 8)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.trunc_normal_(embedding.weight, std=0.02)
    scale = nn.Parameter(torch.ones(3) * 0.5)
    module = nn.ModuleDict({"attention": attention, "linear": linear, "embedding": embedding})
    module.register_parameter("scale", scale)
    return module


def test_no_random_number_is_drawn() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    with SkipInit():
        built = build()
    assert torch.equal(torch.get_rng_state(), state)
    # What is not random is as ever.
    assert built["attention"].in_proj_bias.eq(0).all() and built.scale.eq(0.5).all()


def test_loaded_it_equals_one_that_was_built_as_usual() -> None:
    expected = build()
    with SkipInit():
        built = build()
    built.load_state_dict(expected.state_dict())
    for name, value in expected.state_dict().items():
        assert torch.equal(built.state_dict()[name], value), name


def test_random_values_come_back_behind_it() -> None:
    with SkipInit():
        build()
    weights = torch.empty(100)
    assert nn.init.normal_(weights).std() > 0.5
