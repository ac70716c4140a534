"""Trainings with the convolutional trusty head: its own steps, the class path untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.tiny_run import (
    UNSEEN,
    VOID,
    Call,
    changed,
    equal,
    losses,
    short_run,
    train,
    train_in_two,
    train_labels,
    weights,
)
from PIL import Image

from tagclip import ZeroShotTrainer
from tagclip.engine.trusty_training import TrustyTraining
from tagclip.errors import ConfigError, DatasetError, NonFiniteLossError
from tagclip.modeling.heads.conv_trusty import ConvTrustyHead, TrustyBatch

PREFIX = "sem_seg_head.trusty_head."
CONV = "MODEL.TAGCLIP.TRUSTY.CONV."


@pytest.fixture
def cfg(tiny_cfg: CfgNode, tmp_path: Path) -> CfgNode:
    return short_run(
        tiny_cfg, tmp_path,
        "SOLVER.MAX_ITER", 8,
        "SOLVER.BASE_LR", 0.01,
        "MODEL.TAGCLIP.TRUSTY.KIND", "conv",
        f"{CONV}STEPS", 2,
        f"{CONV}REPLAY_BATCHES", 3,
    )  # fmt: skip


def split_weights(trainer: Any) -> tuple[dict, dict]:
    """Weights of the class path and of the trusty head."""
    every = weights(trainer.model)
    own = {name: t for name, t in every.items() if name.startswith(PREFIX)}
    return {name: t for name, t in every.items() if name not in own}, own


def test_the_class_path_ends_as_without_it_and_every_part_of_the_head_learns(cfg: CfgNode) -> None:
    plain = train(cfg, "MODEL.TAGCLIP.TRUSTY.ENABLED", False)
    torch.manual_seed(0)
    first = {}
    trainer = train(cfg, hook=Call(0, lambda t: first.update(split_weights(t)[1]), after=True))
    path, own = split_weights(trainer)
    assert equal(path, weights(plain.model))
    assert own and all(not torch.equal(own[name], first[name]) for name in own)
    plain_losses = losses(plain)
    for iteration, found in losses(trainer).items():
        assert found.keys() == {"loss_mask", "loss_dice", "loss_trusty", "total_loss"}
        shared = {name: value for name, value in found.items() if name != "loss_trusty"}
        assert shared == plain_losses[iteration]


def test_resume_is_exact(cfg: CfgNode) -> None:
    whole = train(cfg)
    resumed = train_in_two(cfg, 4)
    assert resumed.start_iter == 5
    assert equal(weights(resumed.model), weights(whole.model))
    assert equal(dict(resumed.model.named_buffers()), dict(whole.model.named_buffers()))


def test_it_is_blind_to_unseen_labels(cfg: CfgNode, tmp_path: Path) -> None:
    before = weights(train(cfg).model)
    generator = np.random.default_rng(5)
    for path in train_labels(tmp_path):
        label = np.array(Image.open(path))
        hidden = np.isin(label, UNSEEN)
        assert hidden.any()
        label[hidden] = generator.choice([*UNSEEN, VOID], hidden.sum())
        Image.fromarray(label).save(path)
    assert equal(weights(train(cfg).model), before)


def small_training(**options: Any) -> TrustyTraining:
    torch.manual_seed(0)
    head = ConvTrustyHead(dim=4, channels=3)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 4, 3, 3, generator=generator).half()
    labels = torch.randint(-1, 2, (2, 6, 6), generator=generator).short()
    head.replay.batches.append(TrustyBatch(features, labels, (6, 6), 1))
    return TrustyTraining(head, **options)


class Clock:
    """What the hook asks of a trainer."""

    iter, max_iter = 6, 8


def test_the_rate_falls_linearly(monkeypatch: pytest.MonkeyPatch) -> None:
    training = small_training(lr=0.4, steps=3)
    training.trainer = Clock()
    taken = []
    monkeypatch.setattr(training, "_step", lambda iteration: taken.append(iteration) or 0.0)
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    training.after_step()
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    assert taken == [6, 6, 6]


def test_a_broken_loss_ends_the_run_before_the_step() -> None:
    training = small_training()
    before = {name: p.detach().clone() for name, p in training.head.named_parameters()}
    training.head.replay.batches[0].features[0, 0] = torch.nan
    with pytest.raises(NonFiniteLossError, match="iteration 3: found trusty loss nan"):
        training._step(3)
    assert all(torch.equal(p, before[name]) for name, p in training.head.named_parameters())


def test_an_infinite_loss_is_broken_too(monkeypatch: pytest.MonkeyPatch) -> None:
    training = small_training()

    def overflow(batch: TrustyBatch) -> torch.Tensor:
        return sum(p.square().sum() for p in training.head.parameters()) * torch.inf

    monkeypatch.setattr(training.head, "loss", overflow)
    with pytest.raises(NonFiniteLossError, match="iteration 3: found trusty loss inf"):
        training._step(3)


def test_no_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="CONV.STEPS: found 0, expected a whole number from 1"):
        small_training(steps=0)


def test_images_with_unseen_pixels_can_be_left_out(cfg: CfgNode, tmp_path: Path) -> None:
    paths = train_labels(tmp_path)
    for path in paths[:2]:
        label = np.array(Image.open(path))
        label[np.isin(label, UNSEEN)] = VOID
        Image.fromarray(label).save(path)
    key = "DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES"
    loader = ZeroShotTrainer.build_train_loader(changed(cfg, key, True))
    found = {Path(loader.source(position)["sem_seg_file_name"]).name for position in range(20)}
    assert found == {path.name for path in paths[:2]}
    everything = ZeroShotTrainer.build_train_loader(cfg)
    assert len({everything.source(i)["file_name"] for i in range(6)}) == len(paths)
    label = np.array(Image.open(paths[0]))
    label[0, 0] = 77
    Image.fromarray(label).save(paths[0])
    with pytest.raises(DatasetError, match=r"label 77 at \(0,0\)"):
        ZeroShotTrainer.build_train_loader(changed(cfg, key, True))


def test_no_image_left_is_an_error(cfg: CfgNode) -> None:
    with pytest.raises(ConfigError, match="SKIP_UNSEEN_IMAGES: each of the 6 training images"):
        ZeroShotTrainer.build_train_loader(
            changed(cfg, "DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES", True)
        )
