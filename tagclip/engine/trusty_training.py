"""How the convolutional trusty head learns: steps of its own after every training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from tagclip.config.checks import check_value
from tagclip.engine.data_stream import seeded_step
from tagclip.errors import NonFiniteLossError
from tagclip.modeling.heads.conv_trusty import ConvTrustyHead

__all__ = ["TrustyTraining"]


class TrustyTraining(HookBase):
    """AdamW steps on the batches that the head keeps; their rate falls linearly to 0.

    The head has no part in the model's loss, so the class path is trained exactly as without it.
    Every step is a pure function of the weights, the kept batches and (seed, rank, iteration).
    """

    def __init__(
        self,
        head: ConvTrustyHead,
        *,
        lr: float = 3e-3,
        weight_decay: float = 0.05,
        steps: int = 1,
        seed: int = 0,
    ) -> None:
        """Make the optimizer.

        Args:
            head: what learns.
            lr: rate of the first iteration.
            weight_decay: of AdamW.
            steps: per training iteration.
            seed: of dropout and of the batches drawn, together with rank and iteration.

        Raises:
            ConfigError: fewer than one step.
        """
        check_value("MODEL.TAGCLIP.TRUSTY.CONV.STEPS", steps)
        self.head, self.lr, self.steps, self.seed = head, lr, steps, seed
        self.optimizer = torch.optim.AdamW(head.parameters(), lr, weight_decay=weight_decay)
        # Gathered for a checkpoint, gone with the next step.
        self._others: list[dict[str, Any]] = []

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> TrustyTraining | None:
        """Read ``MODEL.TAGCLIP.TRUSTY.CONV``; None for a model without such a head."""
        head, conv = model.sem_seg_head.trusty_head, cfg.MODEL.TAGCLIP.TRUSTY.CONV
        if head is None:
            return None
        return cls(
            head,
            lr=conv.BASE_LR,
            weight_decay=conv.WEIGHT_DECAY,
            steps=conv.STEPS,
            seed=cfg.SEED,
        )

    def after_step(self) -> None:
        """Take the steps of this iteration and log their mean loss.

        Raises:
            NonFiniteLossError: the loss is not finite in some process; its step was not taken.
        """
        iteration, self._others = self.trainer.iter, []
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * (1 - iteration / self.trainer.max_iter)
        # Not the numbers of the model's own dropout: a rank that no process has.
        seeded_step(self.seed, comm.get_world_size() + comm.get_rank(), iteration)
        total = sum(self._step(iteration) for _ in range(self.steps))
        if comm.is_main_process():
            get_event_storage().put_scalar("loss_trusty", total / self.steps)

    def _step(self, iteration: int) -> float:
        """Return the mean loss over the processes."""
        parameters = list(self.head.parameters())
        loss = self.head.loss(self.head.replay.draw())
        gradients = torch.autograd.grad(loss, parameters)
        mean = _world_mean(loss.detach())
        if not torch.isfinite(mean):
            raise NonFiniteLossError(
                f"iteration {iteration}: found trusty loss {float(mean)}, expected "
                "a finite one; lower MODEL.TAGCLIP.TRUSTY.CONV.BASE_LR"
            )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = _world_mean(gradient)
        self.optimizer.step()
        for statistic in (self.head.norm.running_mean, self.head.norm.running_var):
            statistic.copy_(_world_mean(statistic))
        return float(mean)

    def gather(self) -> None:
        """Bring what each process keeps of its own batches to the main one, before `state_dict`.

        Every process calls this.
        """
        if comm.get_world_size() == 1:
            return
        # One by one, as all batches together may be gigabytes.
        own = self.head.replay.state_dict()["batches"]
        batches = [comm.gather(_on_cpu(batch)) for batch in own]
        self._others = [{"batches": list(kept)} for kept in list(zip(*batches, strict=True))[1:]]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; of several processes in the main one, after `gather`."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "replay": self.head.replay.state_dict(),
            "replay_of_others": self._others,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; every process calls this.

        Of a run with fewer processes several begin with the same batches, and so do all of one that
        an earlier version saved.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        replays = [state["replay"], *state.get("replay_of_others", ())]
        self.head.replay.load_state_dict(replays[comm.get_rank() % len(replays)])


def _on_cpu(batch: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(part.cpu() if isinstance(part, torch.Tensor) else part for part in batch)


def _world_mean(value: torch.Tensor) -> torch.Tensor:
    """Average a tensor over all processes."""
    if comm.get_world_size() == 1:
        return value
    value = value.clone()
    torch.distributed.all_reduce(value)
    return value / comm.get_world_size()
