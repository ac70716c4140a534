"""Training: trainer, data stream, optimizer, schedule and checkpoints."""

from tagclip.engine.checkpoint import TagCLIPCheckpointer, checkpoint_metadata, read_checkpoint
from tagclip.engine.checkpoint_config import checkpoint_config
from tagclip.engine.data_stream import StreamLoader
from tagclip.engine.lr_scheduler import WarmupPolySchedule, build_lr_scheduler
from tagclip.engine.optimizer import build_optimizer
from tagclip.engine.run_info import resolve_weights_and_seed, run_info
from tagclip.engine.trainer import ZeroShotTrainer

__all__ = [
    "StreamLoader",
    "TagCLIPCheckpointer",
    "WarmupPolySchedule",
    "ZeroShotTrainer",
    "build_lr_scheduler",
    "build_optimizer",
    "checkpoint_config",
    "checkpoint_metadata",
    "read_checkpoint",
    "resolve_weights_and_seed",
    "run_info",
]
