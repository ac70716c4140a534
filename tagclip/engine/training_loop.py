"""One optimization step, in one piece or in parts; a broken loss ends it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tagclip.checkpoint.folder import serialised
from tagclip.engine.data_stream import seeded_step
from tagclip.errors import ConfigError, NonFiniteLossError
from tagclip.modeling.scalars import averaged
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
        accumulate: int = 1,
        amp_dtype: torch.dtype | None = None,
        dump_dir: str | Path | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            model: batch -> dict of scalar losses; none where only hooks learn from the batch. They
                are means over the batch's images, or over what `Losses` counts.
            data_loader: batches; asked for the first one when training starts.
            optimizer: over the trainable parameters.
            seed: of dropout, together with rank and iteration.
            accumulate: compute each batch in so many parts, one after the other, of which it is a
                multiple; the gradient is that of the whole batch, the memory that of a part.
            amp_dtype: type of autocast; None computes in float32.
            dump_dir: where ``nan_dump.pth`` goes; None writes none.
        """
        super().__init__(model, data_loader, optimizer)
        self.seed, self.accumulate, self._dump_dir = seed, accumulate, dump_dir
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
            with averaged() if self.accumulate > 1 else nullcontext():
                losses = self._backward(self._parts(data))
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH: found the GPU's memory full in iteration {self.iter} with "
                f"{len(data) // self.accumulate} images at a time in a process, expected room for "
                "them; raise SOLVER.ACCUMULATE (the same batch in more parts), set "
                "MODEL.BACKBONE.CHECKPOINT True, lower MODEL.TAGCLIP.LOSS.WORKSPACE_MIB or the "
                "key, or use more GPUs, and continue with --resume"
            ) from error
        self._write_losses(losses, data, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _parts(self, data: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Split a batch; all parts are padded to one size."""
        if self.accumulate == 1:
            return [data]
        padded = {"padded_size": tuple(map(max, *(item["image"].shape[-2:] for item in data)))}
        size = len(data) // self.accumulate
        return [
            [{**item, **padded, "part": part} for item in data[part * size : (part + 1) * size]]
            for part in range(self.accumulate)
        ]

    def _backward(self, parts: list[list[dict[str, Any]]]) -> dict[str, Tensor]:
        """Leave the gradient of the whole batch in the parameters; return its losses."""
        counts: list[Tensor] = []
        sums: dict[str, Tensor] = {}
        for part in parts:
            with self._synchronised(len(counts) + 1 == len(parts)):
                with self._autocast:
                    losses = self.model(part)
                if not counts:
                    self.optimizer.zero_grad()
                counts.append(getattr(losses, "count", torch.tensor(float(len(part)))))
                # How many things the batch has is known at its end: till then, those of the first.
                weight = counts[-1].clamp(min=1) / counts[0].clamp(min=1)
                if losses:
                    self.grad_scaler.scale(weight * sum(losses.values())).backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + weight * loss.detach()
        if len(parts) > 1:
            share = counts[0].clamp(min=1) / sum(counts).clamp(min=1)
            for tensor in (*sums.values(), *self._gradients()):
                tensor.mul_(share)
        return sums

    def _gradients(self) -> list[Tensor]:
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        return [p.grad for p in parameters if p.grad is not None]

    def _synchronised(self, is_last: bool) -> AbstractContextManager:
        """The processes exchange the gradient of the last part, which holds all."""
        is_distributed = isinstance(self.model, DistributedDataParallel)
        return nullcontext() if is_last or not is_distributed else self.model.no_sync()

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
            "accumulate": self.accumulate,
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
