"""The schedule against its formula in 40 digits and against values of the released code."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import hooks
from hypothesis import given, settings
from hypothesis import strategies as st

from tagclip import ZeroShotTrainer
from tagclip.errors import ConfigError
from tagclip.solver import WarmupPolySchedule, build_lr_scheduler

LENGTHS = (10_000, 20_000, 40_000, 80_000)
# mmcv 1.4.4 with the released configs: length -> rates of these iterations and of the last one.
ITERATIONS = (0, 1, 100, 1499, 1500, 2000)
RELEASED = {
    10000: (
        2.000000000058e-10, 1.335212420422e-07, 1.32140584075e-05, 0.0001728243778321,
        0.0001729214674883, 0.0001637923770641, 1.049986539987e-06,
    ),
    20000: (
        2.000000000058e-10, 1.33527221036e-07, 1.327380421156e-05, 0.0001864003610616,
        0.0001865156856814, 0.0001819969826405, 1.026787123521e-06,
    ),
    40000: (
        2.000000000058e-10, 1.335302105218e-07, 1.330366584737e-05, 0.0001931466248402,
        0.0001932709803876, 0.0001910221909427, 1.014354864064e-06,
    ),
    80000: (
        2.000000000058e-10, 1.335317052618e-07, 1.33185938578e-05, 0.000196509854054,
        0.0001966387048981, 0.0001955168511363, 1.007692581181e-06,
    ),
}  # fmt: skip


def schedule(
    max_iter: int, lrs: tuple[float, ...] = (2e-4,), **constants: float
) -> WarmupPolySchedule:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    return WarmupPolySchedule(torch.optim.SGD(groups), max_iter=max_iter, **constants)


def rates(scheduler: WarmupPolySchedule, iteration: int) -> list[float]:
    """Rates that the optimizer uses in an iteration."""
    scheduler.load_state_dict({"last_epoch": iteration})
    return [group["lr"] for group in scheduler.optimizer.param_groups]


def formula(t: int, length: int, lr: str = "2e-4", floor: str = "1e-6") -> float:
    with localcontext() as context:
        context.prec = 40
        decay = (1 - Decimal(t) / length) ** Decimal("0.9") if t < length else Decimal(0)
        rate = (Decimal(lr) - Decimal(floor)) * decay + Decimal(floor)
        if t < 1500:
            rate *= 1 - (1 - Decimal(t) / 1500) * (1 - Decimal("1e-6"))
        return float(rate)


@settings(max_examples=200, deadline=None)
@given(length=st.sampled_from(LENGTHS), part=st.floats(0, 1.1))
def test_equals_the_formula_everywhere(length: int, part: float) -> None:
    iteration = int(part * length)
    assert rates(schedule(length), iteration)[0] == pytest.approx(
        formula(iteration, length), rel=1e-12, abs=1e-18
    )


@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_formula_where_it_bends(length: int) -> None:
    points = [*range(5), 1498, 1499, 1500, 1501, length // 2, *range(length - 5, length + 3)]
    for t in points:
        found = rates(schedule(length), t)[0]
        assert found == pytest.approx(formula(t, length), rel=1e-12, abs=1e-18), t


@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_released_code(length: int) -> None:
    for t, expected in zip((*ITERATIONS, length - 1), RELEASED[length], strict=True):
        assert rates(schedule(length), t)[0] == pytest.approx(expected, rel=1e-12, abs=0), t


def test_stepping_is_the_same_as_jumping() -> None:
    scheduler = schedule(40, (0.1, 0.003), warmup_iters=7)
    for iteration in range(45):
        stepped = [group["lr"] for group in scheduler.optimizer.param_groups]
        assert stepped == scheduler.get_last_lr()
        assert stepped == rates(schedule(40, (0.1, 0.003), warmup_iters=7), iteration)
        scheduler.optimizer.step()
        scheduler.step()


def test_the_floor_is_absolute_and_the_same_for_every_group() -> None:
    assert rates(schedule(100, (2e-4, 2e-3), warmup_iters=0), 100) == [1e-6, 1e-6]
    assert rates(schedule(100, (2e-4, 2e-3), warmup_iters=0), 10**6) == [1e-6, 1e-6]
    assert rates(schedule(100, (2e-4, 2e-3), warmup_iters=0), 0) == pytest.approx([2e-4, 2e-3])


def test_only_the_iteration_is_saved_and_the_hook_saves_it() -> None:
    scheduler = schedule(100)
    for _ in range(3):
        scheduler.optimizer.step()
        scheduler.step()
    assert scheduler.state_dict() == {"last_epoch": 3}
    assert hooks.LRScheduler(scheduler.optimizer, scheduler).state_dict() == {"last_epoch": 3}
    # The test of detectron2 0.6 as it was released.
    assert isinstance(scheduler, torch.optim.lr_scheduler._LRScheduler)


@pytest.mark.parametrize("length", [5000, 20_000])
def test_resuming_with_another_length_follows_the_new_schedule(length: int) -> None:
    """Also shorter than what has run, where detectron2's own schedule leaves its domain."""
    before = schedule(10_000)
    before.load_state_dict({"last_epoch": 6000})
    after = schedule(length)
    after.optimizer.load_state_dict(before.optimizer.state_dict())
    after.load_state_dict(before.state_dict())
    for t in (6000, 6001):
        assert after.optimizer.param_groups[0]["lr"] == pytest.approx(
            formula(t, length), rel=1e-12, abs=0
        )
        after.optimizer.step()
        after.step()


def test_the_config_is_read(tiny_cfg: CfgNode) -> None:
    tiny_cfg.SOLVER.merge_from_list([
        "MAX_ITER", 50, "POLY_LR_POWER", 2.0, "MIN_LR", 0.01, "WARMUP_ITERS", 4,
        "WARMUP_FACTOR", 0.5,
    ])  # fmt: skip
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.11)
    scheduler = build_lr_scheduler(tiny_cfg, optimizer)
    assert rates(scheduler, 0) == pytest.approx([0.055])
    assert rates(scheduler, 2) == pytest.approx([0.75 * (0.1 * (48 / 50) ** 2 + 0.01)])
    assert rates(scheduler, 25) == pytest.approx([0.1 / 4 + 0.01])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("LR_SCHEDULER_NAME", "WarmupCosineLR", "found 'WarmupCosineLR', expected 'WarmupPolyLR'"),
        ("MAX_ITER", 0, "SOLVER.MAX_ITER: found 0, expected a whole number from 1 to"),
    ],
)
def test_what_makes_no_schedule_is_refused(
    tiny_cfg: CfgNode, key: str, value: str | int, message: str
) -> None:
    tiny_cfg.SOLVER[key] = value
    with pytest.raises(ConfigError, match=message):
        ZeroShotTrainer(tiny_cfg)
