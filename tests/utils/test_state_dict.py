"""State dicts come out of whatever trainers and torch's wrappers put around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from tagclip.errors import CheckpointError
from tagclip.utils.state_dict import unwrap


def network() -> nn.Module:
    """With a block of its own, for wrappers of parts."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))


PLAIN = network().state_dict()
OTHER = {name: tensor + 1 for name, tensor in PLAIN.items()}


class Trained(nn.Module):
    """A Lightning module in little: the network is an attribute, beside its average."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def averaged() -> nn.Module:
    """The average of two models that are the same."""
    model = AveragedModel(network())
    for _ in range(2):
        model.update_parameters(network())
    return model


def compiled_part() -> nn.Module:
    model = network()
    model[1] = torch.compile(model[1])
    return model


def checkpointed_part() -> nn.Module:
    model = network()
    model[1] = checkpoint_wrapper(model[1])
    return model


def state(*wrappers: Callable[[nn.Module], nn.Module]) -> dict[str, Any]:
    """The state dict of the network in wrappers, the innermost first."""
    model = network()
    for wrap in wrappers:
        model = wrap(model)
    return model.state_dict()


CASES = {
    "plain": (PLAIN, []),
    "empty": ({"model": {}}, ["['model']"]),
    "state_dict": ({"state_dict": PLAIN, "epoch": 3, "optimizer": {}}, ["['state_dict']"]),
    "model": ({"model": PLAIN, "iteration": 3}, ["['model']"]),
    "model_state_dict": ({"model_state_dict": PLAIN}, ["['model_state_dict']"]),
    "nested": ({"model": {"state_dict": PLAIN}}, ["['model']", "['state_dict']"]),
    "config beside": ({"model": {"width": 3}, "state_dict": PLAIN}, ["['state_dict']"]),
    "parallel": (state(nn.DataParallel), ["module."]),
    "compiled": (state(torch.compile), ["_orig_mod."]),
    "parallel, compiled": (state(nn.DataParallel, torch.compile), ["_orig_mod.", "module."]),
    "compiled, parallel": (state(torch.compile, nn.DataParallel), ["_orig_mod.", "module."]),
    "compiled part": (compiled_part().state_dict(), ["_orig_mod."]),
    "checkpointed part": (checkpointed_part().state_dict(), []),
    "Lightning": ({"state_dict": Trained(model=network()).state_dict(), "loops": {}},
                  ["['state_dict']", "model."]),
    "averaged": (averaged().state_dict(), ["n_averaged (an average of models)", "module."]),
    "averaged, parallel": (nn.DataParallel(averaged()).state_dict(),
                           ["module.", "n_averaged (an average of models)", "module."]),
    "EMA attribute": (Trained(model=network(), ema_model=AveragedModel(network())).state_dict(),
                      ["ema_model. (EMA) left", "model."]),
    "EMA key": ({"state_dict": PLAIN, "state_dict_ema": OTHER},
                ["['state_dict']", "['state_dict_ema'] (EMA) left"]),
    "EMA key, nested": ({"model": {"model": PLAIN, "ema": OTHER}},
                        ["['model']", "['model']", "['ema'] (EMA) left"]),
    "EMA of mmengine": ({"state_dict": PLAIN, "ema_state_dict": OTHER, "message_hub": {}},
                        ["['state_dict']", "['ema_state_dict'] (weights without EMA) left"]),
    "EMA only": ({"model_ema": PLAIN, "epoch": 3}, ["['model_ema']"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_state_dict_comes_out_and_is_told_of(case: str) -> None:
    content, expected = CASES[case]
    before = dict(content)
    plain, found = unwrap(content, "x.pth")
    assert found == expected
    assert content.keys() == before.keys()
    assert plain.keys() == (PLAIN.keys() if case != "empty" else set())
    assert all(torch.equal(tensor, PLAIN[name]) for name, tensor in plain.items())


def test_a_prefix_that_some_names_lack_stays() -> None:
    """It tells the parts of a model."""
    content = Trained(model=network(), loss=network()).state_dict()
    plain, found = unwrap(content, "x.pth")
    assert (plain.keys(), found) == (content.keys(), [])


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"model": PLAIN, "state_dict": OTHER}, ["'state_dict' and 'model'"]),
        ({"ema": PLAIN, "model_ema": OTHER}, ["'ema' and 'model_ema'"]),
        (
            {"a.b": PLAIN["0.bias"], "a._orig_mod.b": PLAIN["0.bias"]},
            ["'a.b' with and without _orig_mod."],
        ),
        ({"student": PLAIN, "teacher": OTHER}, ["a OrderedDict named 'student'", "model_state_di"]),
        ({"state_dict": 3}, ["a int named 'state_dict'"]),
        ({"model": {"a": PLAIN["0.bias"], "b": 3}}, ["a int named 'b'"]),
        ({3: PLAIN["0.bias"]}, ["a Tensor named 3"]),
    ],
)
def test_what_is_not_one_state_dict_is_refused(content: Any, parts: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"^x\.pth: found ") as caught:
        unwrap(content, "x.pth")
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message
