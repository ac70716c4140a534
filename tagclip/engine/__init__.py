"""Training: trainer, data stream, interruptions and the processes of a run."""

import tagclip

# A new process of a run imports this first: what detectron2's import warns of is hidden here.
tagclip.register()

from tagclip.engine.data_stream import StreamLoader  # noqa: E402
from tagclip.engine.run_info import resolve_weights_and_seed, run_info  # noqa: E402
from tagclip.engine.trainer import ZeroShotTrainer  # noqa: E402

__all__ = ["StreamLoader", "ZeroShotTrainer", "resolve_weights_and_seed", "run_info"]
