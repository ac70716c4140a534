"""Training: trainer, data stream, interruptions and the processes of a run."""

from tagclip.engine.data_stream import StreamLoader
from tagclip.engine.run_info import resolve_weights_and_seed, run_info
from tagclip.engine.trainer import ZeroShotTrainer

__all__ = ["StreamLoader", "ZeroShotTrainer", "resolve_weights_and_seed", "run_info"]
