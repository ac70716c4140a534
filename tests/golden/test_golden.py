"""Parity with the official model, on a trimmed copy of its golden tensors; the check can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden_check
import pytest
import torch
from torch import Tensor

from golden import TRIMMED
from golden.models import workspace
from golden.report import Golden, Report

# What golden files of the official model are made of.
PARTS = {
    "inputs", "state_dict", "zegclip_state_dict", "eval", "backbone_other", "slide", "eval_nodisc",
    "zegclip_eval", "train", "train_one_empty", "train_all_empty", "train_supervised_disc",
    "train_supervised_nodisc", "trans_official_disc", "trans_official_nodisc",
    "trans_intended_disc", "trans_intended_nodisc", "trans_zegclip", "posembed", "text",
    "tokenizer", "optim", "lr",
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return torch.load(TRIMMED, weights_only=True)


@pytest.fixture(scope="module")
def clean(data: dict[str, Any]) -> Report:
    return golden_check.check(data)


def changed(value: Any) -> Any:
    """The same with one entry changed."""
    if isinstance(value, Tensor):
        value = value.clone()
        value.view(-1)[value.double().abs().argmax()] += 1
        return value
    if isinstance(value, list):
        return [*value[:-1], changed(value[-1])] if value else [1]
    return f"{value}x" if isinstance(value, str) else value + 1


def test_every_group_agrees_with_the_official_model(data: dict[str, Any], clean: Report) -> None:
    assert clean.failed == []
    assert {key.split("/")[0] for key in data} >= PARTS
    left = {key.split("/")[0] for key in data.keys() - clean.compared}
    assert left <= {
        "inputs", "config", "meta", "trim", "state_dict", "zegclip_state_dict",
        "trans_official_disc", "trans_official_nodisc",
    }  # fmt: skip
    assert len(clean.lines()) == len(clean.groups) > 130


def test_one_changed_tensor_in_each_group_fails_each_group(
    data: dict[str, Any], clean: Report
) -> None:
    places = [group.keys[-1] for group in clean.groups.values()]
    report = golden_check.check(data | {key: changed(data[key]) for key in places})
    assert report.failed == list(report.groups)


@pytest.mark.parametrize(
    ("key", "failed"),
    [
        ("eval/layer1_attn", ["eval/layer1_attn"]),
        ("slide/disc_True/st_False/argmax", ["slide/disc_True/st_False/argmax"]),
        ("train/grad/backbone.deep_prompt_embeddings", ["train/grad"]),
        ("train/weighted/decode.acc_seg", ["train/weighted"]),
        # A parameter that only the official model computes with, and never to any effect.
        ("state_dict/decode_head.decoder.layers.2.linear1.bias", ["eval/layer2_query"]),
    ],
)  # fmt: skip
def test_a_single_change_exits_with_1(
    data: dict[str, Any], key: str, failed: list[str], tmp_path: Path, capsys
) -> None:
    path = tmp_path / "changed.pt"
    torch.save(data | {key: changed(data[key])}, path)
    assert golden_check.main([str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("FAIL")] == failed


def test_what_is_missing_or_not_compared_exits_with_1(
    data: dict[str, Any], tmp_path: Path, capsys
) -> None:
    path = tmp_path / "other.pt"
    lacking = {key: value for key, value in data.items() if key != "train/pred_disc"}
    torch.save(lacking | {"eval/new": torch.zeros(1)}, path)
    assert golden_check.main([str(path)]) == 1
    output = capsys.readouterr().out
    assert "train/pred_disc: missing in the file" in output
    assert "eval/new: not compared" in output
    assert output.count("FAIL") == 2


def test_a_file_that_agrees_exits_with_0(capsys) -> None:
    assert golden_check.main([str(TRIMMED), "--verbose"]) == 0
    output = capsys.readouterr().out
    assert "FAIL" not in output
    assert "train/grad/decode_head.disc_token" in output


def test_not_a_number_is_no_agreement(data: dict[str, Any]) -> None:
    report = Report(Golden(data))
    report.close("eval/cls", data["eval/cls"] * float("nan"))
    report.close("eval/dense", data["eval/dense"])
    assert report.failed == ["eval/cls"]


def test_the_epsilon_that_float32_hardly_shows(data: dict[str, Any]) -> None:
    with workspace(Golden(data)) as space:
        assert space.model().backbone.prompts.norm.eps == 1e-6
