"""Parameter groups: every trained parameter in one, rates and decay of the released run."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from tagclip import ZeroShotTrainer
from tagclip.errors import ConfigError
from tagclip.solver import build_optimizer
from tagclip.solver.optimizer import parameter_groups


@pytest.fixture
def model(tiny_cfg: CfgNode) -> nn.Module:
    return build_model(tiny_cfg)


def settings_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple]:
    """Name -> (lr, weight decay) of everything that the optimizer updates, each exactly once."""
    names = {id(p): name for name, p in model.named_parameters()}
    entries = [
        (names[id(p)], (group["lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert len({name for name, _ in entries}) == len(entries)
    return dict(entries)


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_released_run_trains_everything_alike(tiny_cfg: CfgNode, model: nn.Module) -> None:
    optimizer = build_optimizer(tiny_cfg, model)
    assert type(optimizer) is torch.optim.AdamW
    found = settings_of(optimizer, model)
    assert found.keys() == trainable(model)
    assert set(found.values()) == {(2e-4, 0.01)}
    assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["eps"] == 1e-8


def test_prompts_have_a_rate_of_their_own(tiny_cfg: CfgNode, model: nn.Module) -> None:
    tiny_cfg.SOLVER.PROMPT_LR_FACTOR = 0.5
    found = settings_of(build_optimizer(tiny_cfg, model), model)
    prompts = {name for name in found if name.startswith("backbone.")}
    assert found.keys() == trainable(model)
    assert {"backbone.prompts.tokens", "backbone.prompts.norm.bias"} <= prompts
    assert {found[name][0] for name in prompts} == {1e-4}
    assert {found[name][0] for name in found.keys() - prompts} == {2e-4}


def test_norms_and_biases_have_a_decay_of_their_own(tiny_cfg: CfgNode, model: nn.Module) -> None:
    tiny_cfg.SOLVER.merge_from_list([
        "WEIGHT_DECAY_NORM", 0.0, "WEIGHT_DECAY_BIAS", 0.02, "BIAS_LR_FACTOR", 2.0
    ])  # fmt: skip
    found = settings_of(build_optimizer(tiny_cfg, model), model)
    assert found.keys() == trainable(model)
    norms = {
        f"{prefix}.{kind}"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for kind in ("weight", "bias")
    } & found.keys()
    assert norms and {found[name] for name in norms} == {(2e-4, 0.0)}
    biases = {name for name in found if name.endswith("bias")} - norms
    assert biases
    assert {found[name] for name in biases} == {(4e-4, 0.02)}
    assert {found[name] for name in found.keys() - norms - biases} == {(2e-4, 0.01)}


def test_a_bias_by_another_name_is_a_bias() -> None:
    cfg = config("SOLVER.WEIGHT_DECAY_BIAS", 0.02)
    attention = nn.MultiheadAttention(4, 1)
    found = settings_of(build_optimizer(cfg, attention), attention)
    assert found["in_proj_bias"] == found["out_proj.bias"] == (2e-4, 0.02)
    assert found["in_proj_weight"] == (2e-4, 0.01)


def test_a_shared_parameter_is_in_one_group() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    groups = parameter_groups(config(), nn.ModuleList([first, second, first]))
    assert sum(len(group["params"]) for group in groups) == 3


def test_frozen_parameters_never_change(tiny_cfg: CfgNode, model: nn.Module) -> None:
    optimizer = build_optimizer(tiny_cfg, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == trainable(model)


def test_the_table_says_what_is_trained(
    tiny_cfg: CfgNode, model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_cfg.SOLVER.PROMPT_LR_FACTOR = 0.5
    with caplog.at_level(logging.INFO):
        build_optimizer(tiny_cfg, model)
    lines = [line.split() for line in caplog.text.replace(",", "").splitlines()]
    rows = {
        " ".join(words[:2]): words[2:] for words in lines if words[:1] in (["deep"], ["frozen"])
    }
    rows |= {words[0]: words[1:] for words in lines if words[:1] in (["head"], ["trained"])}

    def count(parameters: list[nn.Parameter]) -> list[str]:
        return [str(len(parameters)), str(sum(p.numel() for p in parameters))]

    parameters = dict(model.named_parameters())
    groups: dict[str, list[Any]] = {"deep prompts": [], "head": [], "frozen CLIP": []}
    for name, p in parameters.items():
        part = "deep prompts" if name.startswith("backbone.") else "head"
        groups[part if p.requires_grad else "frozen CLIP"].append(p)
    assert rows["deep prompts"] == [*count(groups["deep prompts"]), "0.0001", "0.01"]
    assert rows["head"] == [*count(groups["head"]), "0.0002", "0.01"]
    assert rows["trained"] == count(groups["deep prompts"] + groups["head"])
    assert rows["frozen CLIP"] == count(groups["frozen CLIP"])


def config(*opts: Any) -> CfgNode:
    """Default config with changes: keys and values."""
    from tagclip import load_config

    return load_config(opts=list(opts))


@pytest.mark.parametrize("betas", [[0, 0.99], (0.9, 0), [0, 0]])
def test_whole_numbers_are_rates_as_well(betas: Any) -> None:
    """torch takes two floats alone."""
    optimizer = build_optimizer(config("SOLVER.ADAM_BETAS", betas), nn.Linear(2, 2))
    assert optimizer.param_groups[0]["betas"] == tuple(betas)


def test_sgd_reads_its_own_keys() -> None:
    cfg = config("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.7, "SOLVER.NESTEROV", True)
    optimizer = build_optimizer(cfg, nn.Linear(2, 2))
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.param_groups[0]["momentum"] == 0.7
    assert optimizer.param_groups[0]["nesterov"] is True


def test_gradient_clipping_is_detectron2s() -> None:
    cfg = config(
        "SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.25,
        "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 1.0, "SOLVER.WEIGHT_DECAY", 0.0,
        "SOLVER.MOMENTUM", 0.0,
    )  # fmt: skip
    layer = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(cfg, layer)
    before = layer.weight.item()
    layer.weight.grad = torch.tensor([[8.0]])
    optimizer.step()
    assert before - layer.weight.item() == pytest.approx(0.25)


def test_an_unknown_optimizer_is_refused() -> None:
    changed = config()
    changed.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ConfigError, match="SOLVER.OPTIMIZER: found 'LION', expected 'ADAMW' or"):
        ZeroShotTrainer.build_optimizer(changed, nn.Linear(2, 2))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave nothing to train"):
        build_optimizer(config(), nn.Linear(2, 2).requires_grad_(False))
