"""ZeroShotTrainer: detectron2's DefaultTrainer for zero-shot segmentation."""

from __future__ import annotations

import logging
import subprocess
import time
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tagclip.data import (
    ZeroShotDatasetMapper,
    dataset_vocabulary,
    protocol_summary,
    training_vocabulary,
)
from tagclip.engine.checkpoint import TagCLIPCheckpointer, checkpoint_metadata
from tagclip.engine.data_stream import StreamLoader, seeded_step
from tagclip.engine.lr_scheduler import build_lr_scheduler
from tagclip.engine.optimizer import build_optimizer
from tagclip.errors import ConfigError
from tagclip.evaluation import ZeroShotSemSegEvaluator

__all__ = ["TrainingLoop", "ZeroShotTrainer"]

_AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


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
    ) -> None:
        """Keep the parts.

        Args:
            model: batch -> dict of losses.
            data_loader: batches; asked for the first one when training starts.
            optimizer: over the trainable parameters.
            seed: of dropout, together with rank and iteration.
            amp_dtype: type of autocast; None computes in float32.
        """
        super().__init__(model, data_loader, optimizer)
        self.seed, self.amp_dtype = seed, amp_dtype
        device = next(model.parameters()).device.type
        self._autocast = torch.autocast(device, amp_dtype) if amp_dtype else nullcontext()
        needs_scaling = amp_dtype is torch.float16 and device == "cuda"
        self.grad_scaler = torch.amp.GradScaler(device, enabled=needs_scaling)

    def run_step(self) -> None:
        """Forward, backward, step.

        Raises:
            FloatingPointError: a loss is not finite; names losses and images.
        """
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        seeded_step(self.seed, comm.get_rank(), self.iter)
        with self._autocast:
            losses = self.model(data)
        self._write_losses(losses, data, data_time)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _write_losses(
        self, losses: dict[str, torch.Tensor], data: list[dict[str, Any]], data_time: float
    ) -> None:
        """Log the mean over processes, and stop before a broken gradient reaches the weights."""
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        everyone = comm.gather(values | {"data_time": data_time})
        if not all(map(torch.isfinite, (loss.detach() for loss in losses.values()))):
            files = ", ".join(str(item.get("file_name", "?")) for item in data)
            raise FloatingPointError(
                f"iteration {self.iter}: found losses {values}, expected finite ones; lower "
                f"SOLVER.BASE_LR or check these images: {files}"
            )
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalar("data_time", max(each.pop("data_time") for each in everyone))
        mean = {k: sum(each[k] for each in everyone) / len(everyone) for k in values}
        storage.put_scalar("total_loss", sum(mean.values()))
        storage.put_scalars(**mean)


class ZeroShotTrainer(DefaultTrainer):
    """Trains and evaluates; a config is all it needs.

    No hook picks a checkpoint by an evaluation metric: unseen classes must not choose a model.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Build model, data, optimizer and hooks.

        Args:
            cfg: see `tagclip.config`; a seed below 0 must have been drawn before.
        """
        # DefaultTrainer's own constructor would build another loop and checkpointer.
        TrainerBase.__init__(self)
        self.cfg = cfg
        logging.getLogger(__name__).info("Protocol: %s", protocol_summary(cfg))
        seeded_step(cfg.SEED, 0, -1)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._stream = self.build_train_loader(cfg)
        self._trainer = TrainingLoop(
            _distribute(model),
            self._stream,
            optimizer,
            seed=cfg.SEED,
            amp_dtype=_amp_dtype(cfg),
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = TagCLIPCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            metadata=checkpoint_metadata(cfg, model),
            optimizer=optimizer,
            scaler=self._trainer.grad_scaler,
            trainer=weakref.proxy(self),
        )
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def before_train(self) -> None:
        """Start the stream where training starts."""
        self._stream.start_iter = self.start_iter
        super().before_train()

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See `tagclip.engine.optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """See `tagclip.engine.lr_scheduler`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> StreamLoader:
        """Stream over all images of DATASETS.TRAIN.

        Raises:
            ConfigError: the batch cannot be shared among the processes.
        """
        world_size, batch = comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
        if batch < 1 or batch % world_size:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH: found {batch}, expected a multiple of the {world_size} "
                "processes that share it"
            )
        samples = [sample for name in cfg.DATASETS.TRAIN for sample in DatasetCatalog.get(name)]
        return StreamLoader(
            samples,
            ZeroShotDatasetMapper(cfg, is_train=True),
            batch_size=batch,
            max_iter=cfg.SOLVER.MAX_ITER,
            seed=cfg.SEED,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            rank=comm.get_rank(),
            world_size=world_size,
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        """Loader whose samples carry the vocabulary of their own dataset."""
        return build_detection_test_loader(
            DatasetCatalog.get(dataset_name),
            mapper=ZeroShotDatasetMapper(cfg, is_train=False, dataset_name=dataset_name),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> ZeroShotSemSegEvaluator:
        """Evaluator that writes ``OUTPUT_DIR/inference/<dataset>/metrics.json``.

        Raises:
            ConfigError: the dataset was registered for another kind of evaluation.
        """
        found = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if found != "zero_shot_sem_seg":
            raise ConfigError(
                f"dataset {dataset_name}: found evaluator_type {found!r}, expected "
                "'zero_shot_sem_seg'; register it with register_zero_shot_sem_seg"
            )
        return ZeroShotSemSegEvaluator(
            dataset_name,
            vocabulary=dataset_vocabulary(cfg, dataset_name),
            output_dir=str(Path(cfg.OUTPUT_DIR) / "inference" / dataset_name),
            run_info=run_info(cfg),
        )


def run_info(cfg: CfgNode) -> dict[str, Any]:
    """Say what a result depends on: protocol, seed, fingerprints. Holds no paths."""
    from tagclip.modeling.backbone import CLIPSource

    tagclip = cfg.MODEL.TAGCLIP
    return {
        "protocol": protocol_summary(cfg),
        "setting": cfg.DATASETS.ZERO_SHOT.SETTING,
        "seed": cfg.SEED,
        "weights": Path(cfg.MODEL.WEIGHTS).name,
        "clip": Path(cfg.MODEL.CLIP.NAME).stem,
        "clip_sha256": CLIPSource.from_config(cfg).sha256,
        "templates": cfg.MODEL.CLIP.TEMPLATES,
        "training_vocabulary": training_vocabulary(cfg).fingerprint,
        "trusty_target": tagclip.TRUSTY.TARGET if tagclip.TRUSTY.ENABLED else None,
        "gate": tagclip.TEST.GATE,
        "seen_bias": tagclip.TEST.SEEN_BIAS,
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Commit of the checkout that this package is part of; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None


def _amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    dtype = cfg.SOLVER.AMP.DTYPE
    if dtype not in _AMP_DTYPES:
        raise ConfigError(f"SOLVER.AMP.DTYPE: found {dtype!r}, expected {' or '.join(_AMP_DTYPES)}")
    return _AMP_DTYPES[dtype] if cfg.SOLVER.AMP.ENABLED else None


def _distribute(model: nn.Module) -> nn.Module:
    """Wrap for several processes; every trainable parameter gets a gradient in every step."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).device.type == "cuda"
    return DistributedDataParallel(
        model,
        device_ids=[comm.get_local_rank()] if on_gpu else None,
        broadcast_buffers=False,
    )
