"""Optimizer and learning rate schedule."""

from tagclip.solver.lr_scheduler import WarmupPolySchedule, build_lr_scheduler
from tagclip.solver.optimizer import build_optimizer

__all__ = ["WarmupPolySchedule", "build_lr_scheduler", "build_optimizer"]
