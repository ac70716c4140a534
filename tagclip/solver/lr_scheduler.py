"""Polynomial decay with linear warm-up, whose length is config, not state."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode

__all__ = ["WarmupPolySchedule", "build_lr_scheduler"]


# The old name is a subclass of LRScheduler: detectron2 0.6 saves the state of these only.
class WarmupPolySchedule(torch.optim.lr_scheduler._LRScheduler):
    """r(t) = (lr - min) (1 - t / T)^power + min, times the warm-up factor for t < warm-up.

    The warm-up factor is 1 - (1 - t / warmup) (1 - factor). That is the released code's schedule
    (docs/method.md, section 7). From t = T on the rate is min. Only the iteration is saved: a run
    may be resumed with another length, and then follows the new schedule.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        max_iter: int,
        power: float = 0.9,
        min_lr: float = 1e-6,
        warmup_iters: int = 1500,
        warmup_factor: float = 1e-6,
    ) -> None:
        """Keep the constants.

        Args:
            optimizer: each group's ``lr`` is its maximum.
            max_iter: length T in iterations, at least 1.
            power: exponent of the decay.
            min_lr: floor, an absolute learning rate.
            warmup_iters: length of the warm-up in iterations; 0 leaves it out.
            warmup_factor: factor at t = 0.
        """
        self.max_iter, self.power, self.min_lr = max_iter, power, min_lr
        self.warmup_iters, self.warmup_factor = warmup_iters, warmup_factor
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """Return the learning rate of every group at ``last_epoch`` (an iteration)."""
        step = min(self.last_epoch, self.max_iter)
        warmup = 1.0
        if step < self.warmup_iters:
            warmup = 1 - (1 - step / self.warmup_iters) * (1 - self.warmup_factor)
        decay = (1 - step / self.max_iter) ** self.power
        return [warmup * ((lr - self.min_lr) * decay + self.min_lr) for lr in self.base_lrs]

    def state_dict(self) -> dict[str, int]:
        """Return the iteration only."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue at a saved iteration with this schedule's own constants."""
        self.last_epoch = state_dict["last_epoch"]
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def build_lr_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """Build ``SOLVER.LR_SCHEDULER_NAME``.

    Args:
        cfg: whose values `tagclip.config.check_config` has checked.
        optimizer: whose rates it sets.
    """
    solver = cfg.SOLVER
    return WarmupPolySchedule(
        optimizer,
        max_iter=solver.MAX_ITER,
        power=solver.POLY_LR_POWER,
        min_lr=solver.MIN_LR,
        warmup_iters=solver.WARMUP_ITERS,
        warmup_factor=solver.WARMUP_FACTOR,
    )
