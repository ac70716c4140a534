"""SOLVER.ACCUMULATE: the steps of a batch that is computed in parts are those of the whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from helpers.tiny_run import (
    Call,
    changed,
    equal,
    train,
    train_in_two,
    weights,
    write_tiny_dataset,
)
from torch import Tensor, nn

from tagclip import ZeroShotTrainer
from tagclip.engine.training_loop import TrainingLoop
from tagclip.errors import ConfigError, NonFiniteLossError

TRANSDUCTIVE = (
    "DATASETS.ZERO_SHOT.SETTING", "transductive",
    "DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", True,
    "MODEL.TAGCLIP.SELF_TRAINING.THRESHOLD", 0.0,
)  # fmt: skip
CONV = (
    "MODEL.TAGCLIP.TRUSTY.KIND", "conv",
    "MODEL.TAGCLIP.TRUSTY.CONV.STEPS", 2,
)  # fmt: skip
VARIANTS = {
    "token": (),
    "conv": CONV,
    "conv with replay": (*CONV, "MODEL.TAGCLIP.TRUSTY.CONV.REPLAY_BATCHES", 3),
    "transductive": TRANSDUCTIVE,
    "transductive novel": (*TRANSDUCTIVE, "MODEL.TAGCLIP.SELF_TRAINING.REGION", "novel"),
    "images of different sizes": ("INPUT.CROP.ENABLED", False, "INPUT.MAX_SIZE_TRAIN", 90),
    "other terms": (
        "MODEL.TAGCLIP.LOSS.IGNORE_AS_NEGATIVE", False, "MODEL.TAGCLIP.TRUSTY.LOSS", "dice",
    ),
    "clipped gradients": (
        "SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.01,
    ),
}  # fmt: skip


@pytest.fixture
def cfg(tiny_cfg: CfgNode, tmp_path: Path) -> CfgNode:
    """Six steps of four images; only data, weights and the conv head are random; no evaluation."""
    write_tiny_dataset(tmp_path)
    return changed(
        tiny_cfg,
        "SOLVER.IMS_PER_BATCH", 4,
        "SOLVER.MAX_ITER", 6,
        "SOLVER.WARMUP_ITERS", 0,
        # Adam turns the rounding noise of a zero gradient into steps of full length.
        "SOLVER.OPTIMIZER", "SGD",
        "SOLVER.BASE_LR", 0.02,
        "MODEL.CLIP.PROMPT.DROPOUT", 0.0,
        "MODEL.TAGCLIP.DROPOUT", 0.0,
        "DATASETS.TEST", (),
    )  # fmt: skip


def curves(trainer: Any) -> dict[str, list[float]]:
    """What a trainer recorded of its steps, but times."""
    histories = trainer.storage.histories().items()
    return {n: [value for value, _ in h.values()] for n, h in histories if "time" not in n}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_make_the_step_of_the_whole(cfg: CfgNode, variant: str) -> None:
    cfg = changed(cfg, *VARIANTS[variant])
    before: dict[str, torch.Tensor] = {}
    whole = train(cfg, hook=Call(0, lambda trainer: before.update(weights(trainer.model))))
    expected = weights(whole.model)
    for parts in (2, 4):
        found = train(cfg, "SOLVER.ACCUMULATE", parts)
        for name, weight in weights(found.model).items():
            # Its AdamW makes much of the rounding of vectors that it keeps in half precision.
            bound = 1e-5 if ".trusty_head." in name else 1e-6
            error = (weight - expected[name]).norm()
            assert error <= bound * expected[name].norm(), (parts, name)
        curve = curves(found)
        assert curve.keys() == curves(whole).keys()
        for name, values in curves(whole).items():
            # A pixel may lie on the border of two pseudo-labels.
            bound = 2e-3 if name.startswith("pseudo") else 1e-5
            assert curve[name] == pytest.approx(values, rel=bound), (parts, name)
    # The bound means something: most tensors moved a thousand times further.
    moved = {n for n in expected if (expected[n] - before[n]).norm() > 1e-3 * before[n].norm()}
    assert len(moved) > 20


def test_the_parts_are_what_the_memory_holds(cfg: CfgNode) -> None:
    sizes: list[int] = []

    def listen(trainer: Any) -> None:
        trainer.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))

    train(cfg, "SOLVER.ACCUMULATE", 2, hook=Call(0, listen))
    assert sizes == [2] * 12


def test_a_step_in_parts_resumes_bit_for_bit(cfg: CfgNode) -> None:
    """With dropout, and batches kept by the trusty head."""
    random = ("MODEL.TAGCLIP.DROPOUT", 0.1, "MODEL.TAGCLIP.TRUSTY.CONV.DROPOUT", 0.1)
    kept = VARIANTS["conv with replay"]
    cfg = changed(cfg, *kept, *random, "SOLVER.ACCUMULATE", 2, "SOLVER.OPTIMIZER", "ADAMW")
    straight = train(cfg)
    assert equal(weights(train_in_two(cfg, 2).model), weights(straight.model))


def test_a_batch_that_cannot_be_split(cfg: CfgNode) -> None:
    with pytest.raises(ConfigError) as caught:
        ZeroShotTrainer.check(changed(cfg, "SOLVER.ACCUMULATE", 3), weights="", train=True)
    assert str(caught.value).startswith(
        "SOLVER.ACCUMULATE: found 3, expected a divisor of the 4 images that a process computes"
    )


@pytest.mark.parametrize("unlabelled", [(0, 1), (2, 3), (0, 1, 2, 3)])
def test_a_part_without_labels_counts_nothing(cfg: CfgNode, unlabelled: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = []
    for number in range(4):
        image = torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 3, (64, 64), generator=generator, dtype=torch.uint8)
        labels[20:] = 255
        if number in unlabelled:
            labels[:] = 255
        batch.append({"image": image, "sem_seg": labels})
    gradients = []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        model = ZeroShotTrainer.build_model(cfg)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.0)
        step(TrainingLoop(model, [batch], optimizer, seed=0, accumulate=accumulate))
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-6, msg=name)


class Means(nn.Module):
    """A model of someone else: a plain dict of losses, which are means over the images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {"loss": torch.stack([item["image"].mean() for item in batch]).mean() * self.weight}


def step(loop: TrainingLoop) -> None:
    loop._data_loader_iter_obj = iter(loop.data_loader)
    with EventStorage(0) as storage:
        loop.iter, loop.storage = 0, storage
        loop.run_step()


def test_losses_that_count_nothing_are_means_over_images() -> None:
    batch = [{"image": torch.full((3, 2, 2), float(value))} for value in (1, 2, 3, 10)]
    model = Means()
    step(
        TrainingLoop(model, [batch], torch.optim.SGD(model.parameters(), 0.1), seed=0, accumulate=2)
    )
    assert model.weight.grad == 4
    assert float(model.weight) == pytest.approx(0.6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_is_no_step(value: float, accumulate: int) -> None:
    """Infinite is broken, too; in the last part only."""
    batch = [{"image": torch.zeros(3, 2, 2), "file_name": name} for name in "abcd"]
    batch[3]["image"] = torch.full((3, 2, 2), value)
    model = Means()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loop = TrainingLoop(model, [batch], optimizer, seed=0, accumulate=accumulate)
    with pytest.raises(NonFiniteLossError, match=f"found losses loss {value:.4g}, .*: a, b, c, d"):
        step(loop)
    assert model.weight == 1
