"""One optimization step, which a broken loss ends."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from tagclip.checkpoint.folder import serialised
from tagclip.engine.data_stream import seeded_step
from tagclip.errors import ConfigError, NonFiniteLossError
from tagclip.utils.files import write_atomic

__all__ = ["TrainingLoop"]

logger = logging.getLogger(__name__)


class TrainingLoop(SimpleTrainer):
    """One optimization step; its randomness is a pure function of (seed, rank, iteration)."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        amp_dtype: torch.dtype | None = None,
        dump_dir: str | Path | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            model: batch -> dict of scalar losses; none where only hooks learn from the batch.
            data_loader: batches; asked for the first one when training starts.
            optimizer: over the trainable parameters.
            seed: of dropout, together with rank and iteration.
            amp_dtype: type of autocast; None computes in float32.
            dump_dir: where ``nan_dump.pth`` goes; None writes none.
        """
        super().__init__(model, data_loader, optimizer)
        self.seed, self._dump_dir = seed, dump_dir
        device = next(model.parameters()).device.type
        self._autocast = torch.autocast(device, amp_dtype) if amp_dtype else nullcontext()
        is_half = amp_dtype is torch.float16 and device == "cuda"
        needs_scaling = is_half and any(group["params"] for group in optimizer.param_groups)
        self.grad_scaler = torch.amp.GradScaler(device, enabled=needs_scaling)

    def run_step(self) -> None:
        """Forward, backward, step.

        An overflow that float16's loss scaling causes is no error: the scaler skips that step.

        Raises:
            NonFiniteLossError: a loss is not finite in some process; names losses and images.
                The weights are still those before the step.
            ConfigError: the GPU's memory is too small for the step.
        """
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        seeded_step(self.seed, comm.get_rank(), self.iter)
        try:
            with self._autocast:
                losses = self.model(data)
            self.optimizer.zero_grad()
            if losses:
                self.grad_scaler.scale(sum(losses.values())).backward()
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH: found the GPU's memory full in iteration {self.iter} with "
                f"{len(data)} images in a process, expected room for them; lower the key, set "
                "MODEL.BACKBONE.CHECKPOINT True, lower MODEL.TAGCLIP.LOSS.WORKSPACE_MIB, or use "
                "more GPUs, and continue with --resume"
            ) from error
        self._write_losses(losses, data, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _write_losses(
        self, losses: dict[str, Tensor], data: list[dict[str, Any]], data_time: float
    ) -> None:
        """Log the mean over processes; all of them stop when one has a broken loss."""
        tensors = [loss.detach().float() for loss in losses.values()]
        values = dict(zip(losses, torch.stack(tensors).tolist() if losses else (), strict=True))
        is_finite = all(map(math.isfinite, values.values()))
        files = [] if is_finite else [str(item.get("file_name", "?")) for item in data]
        if not is_finite:
            self._dump(values, files, data)
        everyone = comm.all_gather((values, files, data_time))
        for rank, (found, names, _) in enumerate(everyone):
            if names:
                raise NonFiniteLossError(
                    f"iteration {self.iter}, process {rank}: found losses {_format(found)}, "
                    "expected finite ones; lower SOLVER.BASE_LR or check these images: "
                    f"{', '.join(names)}"
                )
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalar("data_time", max(seconds for _, _, seconds in everyone))
        mean = {k: sum(found[k] for found, _, _ in everyone) / len(everyone) for k in values}
        if mean:
            storage.put_scalars(total_loss=sum(mean.values()), **mean)

    def _dump(self, values: dict[str, float], files: list[str], data: list[dict[str, Any]]) -> None:
        """Keep what repeats the broken step: batch, weights and the seed of its randomness."""
        if self._dump_dir is None:
            return
        weights = {n.removeprefix("module."): p for n, p in self.model.named_parameters()}
        content = {
            "iteration": self.iter,
            "seed": self.seed,
            "rank": comm.get_rank(),
            "losses": values,
            "file_names": files,
            "batch": [{k: v for k, v in x.items() if isinstance(v, Tensor)} for x in data],
            "model": {n: p.detach() for n, p in weights.items() if p.requires_grad},
        }
        suffix = f"_rank{comm.get_rank()}" if comm.get_rank() else ""
        path = write_atomic(Path(self._dump_dir) / f"nan_dump{suffix}.pth", serialised(content))
        logger.error("Loss is not finite: batch and weights of this step are in %s", path)


def _format(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
