"""Resuming: what is restored, and folders to resume from that are not in order."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from helpers.tiny_checkpoint import assert_equal, build, checkpointer, save_tiny, step, trained
from helpers.toy_dataset import forget

from tagclip import TagCLIPCheckpointer
from tagclip.checkpoint import read_checkpoint
from tagclip.errors import CheckpointError
from tagclip.solver import build_optimizer


class Iteration:
    """A trainer without a state."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert state == {}


@pytest.fixture
def saved(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    return save_tiny(tiny_cfg, tmp_path)


def test_a_new_training_starts_from_clip(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    cfg, model = build(tiny_cfg)
    training = checkpointer(cfg, model, tmp_path, optimizer=build_optimizer(cfg, model))
    assert training.resume_or_load("", resume=False) == {}


def test_resume_takes_the_last_and_restores_the_optimizer(
    tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    cfg, model = build(tiny_cfg)
    optimizer = build_optimizer(cfg, model)
    training = checkpointer(cfg, model, tmp_path, optimizer=optimizer)
    for i in range(2):
        step(model, optimizer)
        training.save(f"model_{i}", iteration=i)
    expected = trained(model)
    assert (tmp_path / "last_checkpoint").read_text() == "model_1.pth"

    cfg, model = build(tiny_cfg, seed=5)
    optimizer = build_optimizer(cfg, model)
    training = checkpointer(cfg, model, tmp_path, optimizer=optimizer)
    training.resume_or_load(str(tmp_path / "model_1.pth"), resume=False)
    assert_equal(trained(model), expected)
    assert not optimizer.state
    assert training.resume_or_load("unused.pth", resume=True)["iteration"] == 1
    states = optimizer.state_dict()["state"].values()
    assert states and all(state["step"] == 2 for state in states)


@pytest.mark.parametrize("times", list(itertools.permutations((1, 2, 3))))
def test_resume_goes_by_the_iteration_and_not_by_the_clock(
    tiny_cfg: CfgNode, tmp_path: Path, times: tuple[int, ...]
) -> None:
    cfg, model = build(tiny_cfg)
    parts = {"optimizer": build_optimizer(cfg, model), "trainer": Iteration()}
    training = checkpointer(cfg, model, tmp_path, **parts)
    for iteration, time in zip((9, 99, 100), times, strict=True):
        training.save(f"model_{iteration}", iteration=iteration)
        os.utime(tmp_path / f"model_{iteration}.pth", (time, time))
    (tmp_path / "last_checkpoint").unlink()
    assert training.resume_or_load("", resume=True)["iteration"] == 100


@pytest.mark.parametrize("content", ["model_9.pth", "", "../model_final.pth", None])
def test_last_checkpoint_that_leads_nowhere_is_an_error(
    tiny_cfg: CfgNode, saved: Path, content: str | None
) -> None:
    tag = saved.with_name("last_checkpoint")
    tag.unlink()
    if content is not None:
        tag.write_text(content)
    cfg, model = build(tiny_cfg)
    training = checkpointer(cfg, model, saved.parent, optimizer=build_optimizer(cfg, model))
    with pytest.raises(
        CheckpointError, match=r"last_checkpoint: .*expected .*write .*such as model_final\.pth"
    ):
        training.resume_or_load("", resume=True)


def test_resuming_an_empty_folder_starts_and_says_so(
    tiny_cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg, model = build(tiny_cfg)
    folder = tmp_path / "not_yet"
    training = checkpointer(cfg, model, folder, optimizer=build_optimizer(cfg, model))
    assert training.resume_or_load("", resume=True) == {}
    assert "holds no checkpoint to resume from: starting a new run" in caplog.text
    with pytest.raises(CheckpointError, match="expected a checkpoint to evaluate"):
        checkpointer(cfg, model, folder).resume_or_load("", resume=True)


def test_resuming_from_weights_alone_is_refused(tiny_cfg: CfgNode, saved: Path) -> None:
    cfg, model = build(tiny_cfg)
    training = checkpointer(cfg, model, saved.parent, optimizer=build_optimizer(cfg, model))
    with pytest.raises(CheckpointError, match="found no state of the optimizer"):
        training.resume_or_load("", resume=True)


def test_resuming_with_other_groups_is_one_line(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    cfg, model = build(tiny_cfg)
    checkpointer(cfg, model, tmp_path, optimizer=build_optimizer(cfg, model)).save("x")
    cfg, model = build(tiny_cfg, SOLVER__WEIGHT_DECAY_NORM=0.0)
    training = checkpointer(cfg, model, tmp_path, optimizer=build_optimizer(cfg, model))
    with pytest.raises(CheckpointError, match="state of the optimizer does not fit .*SOLVER"):
        training.resume_or_load("", resume=True)


def test_resuming_with_other_keys_is_announced(
    tiny_cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What makes it another run is a warning, the rest information; one line each."""
    cfg, model = build(tiny_cfg, CONFIG_NAME="a" * 300)
    checkpointer(cfg, model, tmp_path, optimizer=build_optimizer(cfg, model)).save("x")
    run = {"SOLVER__IMS_PER_BATCH": 8, "SEED": 7, "MODEL__TAGCLIP__LOSS__DICE": 2.0}
    free = {"TEST__EVAL_PERIOD": 3, "MODEL__TAGCLIP__TEST__SEEN_BIAS": 0.0, "CONFIG_NAME": ""}
    cfg, model = build(tiny_cfg, **run, **free)
    training = checkpointer(cfg, model, tmp_path, optimizer=build_optimizer(cfg, model))
    with caplog.at_level(logging.INFO):
        training.resume_or_load("", resume=True)
    lines = [(r.levelname, r.message) for r in caplog.records if "other keys" in r.message]
    (first, warned), (second, told) = lines
    assert (first, second) == ("WARNING", "INFO")
    assert warned.endswith(
        "MODEL.TAGCLIP.LOSS.DICE 2.0 (was 1.0), SEED 7 (was 0), SOLVER.IMS_PER_BATCH 8 (was 16)"
    )
    name = f"{'a' * 37}...{'a' * 40}"
    assert told.endswith(
        f"CONFIG_NAME empty (was {name}), MODEL.TAGCLIP.TEST.SEEN_BIAS 0.0 (was 0.1), "
        "TEST.EVAL_PERIOD 3 (was 0)"
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        training.resume_or_load(str(tmp_path / "x.pth"), resume=False)
    assert not caplog.text


@pytest.mark.parametrize("then", ["out", "deep/er/out"])
def test_the_same_files_seen_from_another_folder_are_the_same(
    tiny_cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture, then: str
) -> None:
    """Paths are stored as seen from OUTPUT_DIR, which may be moved without what they lead to."""

    def training(output: str, data: str) -> TagCLIPCheckpointer:
        forget(name := f"mine_{tmp_path.name}")
        paths = {kind: str(tmp_path / data / kind) for kind in ("images", "labels")}
        folders = [{"name": name, **paths, "vocabulary": str(tmp_path / "data" / "v.json")}]
        cfg, model = build(
            tiny_cfg, OUTPUT_DIR=str(tmp_path / output), DATASETS__FOLDER_DATASETS=folders
        )
        return checkpointer(cfg, model, tmp_path, optimizer=build_optimizer(cfg, model))

    training("out", "data").save("x")
    assert str(tmp_path) not in read_checkpoint(tmp_path / "x.pth")["tagclip"]["config"]
    training(then, "data").resume_or_load("", resume=True)
    assert "other keys" not in caplog.text
    training(then, "other").resume_or_load("", resume=True)
    assert "other keys or data" in caplog.text and "other/images" in caplog.text


def test_resuming_after_files_were_edited_is_announced(
    tiny_cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No key tells."""
    cfg, model = build(tiny_cfg)
    optimizer = build_optimizer(cfg, model)
    saving = checkpointer(cfg, model, tmp_path, optimizer=optimizer)
    saving.metadata |= {
        "training_files": "as it was",
        "label_colors": "as they were",
        "processes": 2,
    }
    saving.save("x")
    for edited, said in (
        ({}, []),
        ({"vocabulary_fingerprint": "other"}, ["class list"]),
        ({"training_files": "other"}, ["training images and label files"]),
        ({"label_colors": "other"}, ["the colours of the class list"]),
        ({"label_colors": None}, []),
        ({"label_colors": ""}, []),
        ({"processes": 1}, ["1 processes (were 2)"]),
        ({"processes": None}, []),
        (
            {"vocabulary_fingerprint": "other", "training_files": "other"},
            ["class list", "training images and label files"],
        ),
    ):
        training = checkpointer(cfg, model, tmp_path, optimizer=optimizer)
        training.metadata = saving.metadata | edited
        caplog.clear()
        training.resume_or_load("", resume=True)
        lines = [r.message for r in caplog.records if r.levelname == "WARNING"]
        assert len(lines) == bool(said)
        assert [found in line for line in lines for found in said] == [True] * len(said)


class Nested:
    """As `TrustyTraining`: an optimizer inside."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to(torch.int32), r"exp_avg \(int32\).* more, expected floating-point"),
        (lambda t: t.to(torch.bool), r"exp_avg \(bool\).* more, expected floating-point"),
        (lambda t: t.to(torch.complex64), r"exp_avg \(complex64\).* more, expected floating-point"),
        (lambda t: t * torch.nan, r"not finite in \S+state\.0\.exp_avg, .*take an earlier"),
        (lambda t: t + torch.inf, r"not finite in \S+state\.0\.exp_avg, .*take an earlier"),
    ],
)
def test_a_state_of_other_numbers_is_refused(
    tiny_cfg: CfgNode, tmp_path: Path, is_nested: bool, message: str,
    change: Callable[[torch.Tensor], torch.Tensor],
) -> None:  # fmt: skip
    """Rounded moments are resumed without a word, and moments of nan blamed on the images."""
    cfg, model = build(tiny_cfg)
    optimizer = build_optimizer(cfg, model)
    step(model, optimizer)
    parts = {"optimizer": Nested(optimizer) if is_nested else optimizer}
    training = checkpointer(cfg, model, tmp_path, **parts)
    training.save("x", iteration=1)
    training.resume_or_load("", resume=True)
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    outer = content["optimizer"]
    for state in (outer["optimizer"] if is_nested else outer)["state"].values():
        state["exp_avg"] = change(state["exp_avg"])
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        training.resume_or_load("", resume=True)
    assert "\n" not in str(caught.value) and str(tmp_path / "x.pth") in str(caught.value)


class Counting:
    """As a trainer: it knows its iteration."""

    def __init__(self, iteration: Any) -> None:
        self.iteration = iteration

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]


@pytest.mark.parametrize(
    "iteration", [10**9, -5, 2, True, 3.0, math.nan, "3", None, [3]], ids=lambda value: repr(value)
)
def test_an_iteration_that_is_none_or_another_is_refused(
    tiny_cfg: CfgNode, tmp_path: Path, iteration: Any
) -> None:
    """A training would end at once, as if it were done, or in the middle of its schedule."""
    cfg, model = build(tiny_cfg)
    counting = Counting(3)
    training = checkpointer(cfg, model, tmp_path, trainer=counting)
    training.save("x", iteration=3)
    training.resume_or_load("", resume=True)
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    content["trainer"]["iteration"] = iteration
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(
        CheckpointError, match=r"found trainer\.iteration .*, expected 3 "
    ) as caught:
        training.resume_or_load("", resume=True)
    assert "\n" not in str(caught.value) and counting.iteration == 3
    del content["iteration"]
    torch.save(content, tmp_path / "x.pth")
    if iteration in (2, 10**9):
        training.resume_or_load("", resume=True)
        assert counting.iteration == iteration
    else:
        with pytest.raises(CheckpointError, match="expected 0 or more"):
            training.resume_or_load("", resume=True)
